"""Finds the old backend name in Python source: where the syntax tree says that it is the option's value."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise

from vmamba.migrate.spot import OLD, Spot, UnparsableError, buried_spot, doubt, is_buried, is_key, is_option_word

#: Calls whose arguments are (…, name, value).
_NAME_VALUE_CALLS = {
    "setattr", "getattr", "setdefault", "get", "pop", "update", "__setitem__", "setitem", "setenv", "getenv", "putenv"
}  # fmt: skip
#: Calls that describe a field or an option and carry its default.
_FIELD_CALLS = {"field", "Field", "Option", "Argument", "attrib", "ib"}
_DEFAULT_KEYWORDS = {"default", "const", "value"}

_LINE_END = re.compile(r"\r\n|\r|\n")
_LITERAL = re.compile(r"""[rRuU]?("{3}|'{3}|"|')(.*)\1""", re.DOTALL)


def find_python(text: str) -> list[Spot]:
    """Return the spots of Python source ``text`` (without a byte order mark), in order.

    Raises:
        UnparsableError: not Python of the running interpreter's version.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are the file's business
            tree = ast.parse(text)
    except SyntaxError as error:
        raise UnparsableError(f"line {error.lineno}: {error.msg}" if error.lineno else str(error.msg)) from error
    except (RecursionError, MemoryError) as error:
        raise UnparsableError("too deeply nested") from error
    except ValueError as error:
        raise UnparsableError(str(error)) from error
    # The walk takes several times as long as the parser.
    return _Finder(text, tree).spots() if "backend" in text.lower() else []


class _Finder:
    """One pass over a tree; `_value` judges each expression that becomes the option's value."""

    def __init__(self, text: str, tree: ast.Module) -> None:
        self.text = text
        self.tree = tree
        self.line_starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        self.found: dict[tuple[int, int], Spot] = {}
        self.aliases: dict[str, str] = {}
        self.literals: dict[str, list[ast.Constant]] = {}  # name -> the constants it is bound to
        self.bindings: dict[str, int] = {}  # name -> how often it is bound at all
        self.in_f_string: dict[ast.AST, ast.JoinedStr] = {}
        self.prose: set[ast.AST] = set()

    def spots(self) -> list[Spot]:
        for node in ast.walk(self.tree):
            self._learn(node)
        for node in ast.walk(self.tree):
            self._visit(node)
        return sorted(self.found.values(), key=lambda spot: spot.start)

    # What must be known before the values are judged.

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.ImportFrom() | ast.Import():
                for name in node.names:
                    self.aliases[name.asname or name.name] = name.name
                    self._bind(name.asname or name.name.partition(".")[0])
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant() as value):
                self.literals.setdefault(name, []).append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant() as value):
                self.literals.setdefault(name, []).append(value)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                self._bind(name)
            case ast.arguments():
                for parameter, default in _defaults(node):
                    if isinstance(default, ast.Constant):
                        self.literals.setdefault(parameter.arg, []).append(default)
                # Twice: whatever the default, the caller may pass something else.
                for part in ast.walk(node):
                    if isinstance(part, ast.arg):
                        self._bind(part.arg, 2)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                self._bind(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                self._bind(name)
            case ast.Expr(value=ast.Constant() as value):
                self.prose.add(value)
            case ast.JoinedStr():
                for part in ast.walk(node):
                    self.in_f_string.setdefault(part, node)

    def _bind(self, name: str, times: int = 1) -> None:
        self.bindings[name] = self.bindings.get(name, 0) + times

    # Where the option gets a value.

    def _visit(self, node: ast.AST) -> None:
        match node:
            case ast.keyword(arg=str(name), value=value) if is_key(name):
                self._value(value, "keyword argument")
            case ast.Assign(targets=targets, value=value):
                self._assignment(targets, value)
            case ast.AnnAssign(target=target, annotation=annotation, value=value) if self._is_key_target(target):
                self._annotation(annotation)
                if value is not None:
                    self._value(value, "assignment")
            case ast.NamedExpr(target=target, value=value) if self._is_key_target(target):
                self._value(value, "assignment")
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if _is_key_constant(key):
                        self._value(value, "dict entry")
            case ast.arguments():
                for parameter, default in _defaults(node):
                    if is_key(parameter.arg):
                        self._value(default, "default argument")
                for part in ast.walk(node):
                    if isinstance(part, ast.arg) and is_key(part.arg) and part.annotation is not None:
                        self._annotation(part.annotation)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _is_scan(node.name):
                for parameter, default in _defaults(node.args):
                    if parameter.arg == "backend" and _holds_old(default):
                        self._by_hand(default, "default of a scan function's own definition")
            case ast.Call():
                self._call(node)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                self._word_list(elements)
            case ast.BoolOp(op=ast.Or(), values=[first, *rest]) if self._is_key_reference(first):
                for value in rest:
                    if _holds_old(value):
                        self._value(value, "fallback")
            case ast.Compare(left=left, comparators=others):
                self._comparison(node, [left, *others])
            case ast.Match(subject=subject, cases=cases) if _mentions_key(subject):
                for case in cases:
                    if _holds_old(case.pattern):
                        self._by_hand(case.pattern, "comparison")
            case ast.For(target=target, iter=values) | ast.comprehension(target=target, iter=values):
                if self._is_key_target(target) and _holds_old(values):
                    self._by_hand(values, "one of several values")
            case ast.Constant(value=str(value)) if node not in self.prose and is_buried(value):
                spot = buried_spot(self.text, *self._span(self.in_f_string.get(node, node)))
                self.found.setdefault((spot.start, spot.end), spot)

    def _assignment(self, targets: list[ast.expr], value: ast.expr) -> None:
        if (
            len(targets) == 1
            and isinstance(targets[0], (ast.Tuple, ast.List))
            and isinstance(value, ast.Tuple | ast.List)
        ):
            pairs = list(zip(targets[0].elts, value.elts, strict=False))
            if len(targets[0].elts) == len(value.elts) and not any(
                isinstance(n, ast.Starred) for p in pairs for n in p
            ):
                for target, part in pairs:
                    self._assignment([target], part)
            return
        keys = [self._is_key_target(target) for target in targets]
        if all(keys):
            self._value(value, "assignment")
        elif any(keys) and _holds_old(value):
            self._by_hand(value, "assignment", "another variable gets the same value")

    def _call(self, node: ast.Call) -> None:
        name = _last_name(node.func)
        resolved = self.aliases.get(name, name)
        scanner = resolved
        if resolved == "partial" and node.args:
            scanner = _last_name(node.args[0])
            scanner = self.aliases.get(scanner, scanner)
        if _is_scan(scanner):
            for keyword in node.keywords:
                if keyword.arg == "backend":
                    self._value(keyword.value, f"backend= of {scanner.rpartition('.')[2]}(…)")

        for key, value in pairwise(node.args):
            if not _is_key_constant(key):
                continue
            if name in _NAME_VALUE_CALLS:
                self._value(value, f"argument of {name}(…)")
            elif _holds_old(value):
                self._by_hand(value, f"argument of {name or 'a call'}(…) after the option's name")
        if any(_is_key_constant(argument) for argument in node.args):
            for keyword in node.keywords:
                if keyword.arg in _DEFAULT_KEYWORDS:
                    self._value(keyword.value, f"{keyword.arg}= of {name}(…)")
                elif keyword.arg is not None and not is_key(keyword.arg) and _holds_old(keyword.value):
                    self._by_hand(keyword.value, f"{keyword.arg}= of {name}(…)")

    def _word_list(self, elements: list[ast.expr]) -> None:
        for key, value in pairwise(elements):
            if not _is_key_constant(key) or not _holds_old(value):
                continue
            if isinstance(key, ast.Constant) and is_option_word(key.value):
                self._value(value, "word after the option")
            else:
                self._by_hand(value, "word after the option's name")

    def _comparison(self, node: ast.AST, sides: list[ast.expr]) -> None:
        if any(_mentions_key(side) for side in sides) and any(_holds_old(side) for side in sides):
            self._by_hand(node, "comparison")

    def _annotation(self, annotation: ast.expr) -> None:
        if _holds_old(annotation):
            self._by_hand(annotation, "type annotation")

    def _is_key_target(self, target: ast.expr) -> bool:
        match target:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return is_key(name)
            case ast.Subscript(slice=key):
                return _is_key_constant(key)
        return False

    def _is_key_reference(self, node: ast.expr) -> bool:
        """Whether ``node`` reads the option: ``args.selective_scan_backend``, ``cfg.get("selective_scan_backend")``."""
        if isinstance(node, ast.Call):
            return _last_name(node.func) in _NAME_VALUE_CALLS and any(_is_key_constant(value) for value in node.args)
        return self._is_key_target(node)

    # What the option's value is.

    def _value(self, node: ast.expr, kind: str) -> None:
        f_string = self.in_f_string.get(node, node)
        if f_string is not node:  # positions inside are not exact before Python 3.12
            if _holds_old(node):
                self._by_hand(f_string, "f-string")
            return
        match node:
            case ast.Constant(value=str(value)):
                if value == OLD:
                    self._literal(node, kind)
                elif reason := doubt(value):
                    self._by_hand(node, kind, reason)
            case ast.Constant():
                pass
            case ast.IfExp(body=first, orelse=second):
                self._value(first, kind)
                self._value(second, kind)
            case ast.BoolOp(values=values):
                for value in values:
                    self._value(value, kind)
            case ast.NamedExpr(value=value):
                self._value(value, kind)
            case ast.JoinedStr(values=parts):
                fixed = all(isinstance(part, ast.Constant) for part in parts)
                if not fixed or "".join(str(getattr(part, "value", "")) for part in parts) == OLD:
                    self._by_hand(node, "f-string")
            case ast.Name(id=name):
                self._name(node, name, kind)
            case ast.List() | ast.Tuple() | ast.Set() | ast.Dict():
                if _holds_old(node):
                    self._by_hand(node, "one of several values")
            case ast.Call(func=func) if _last_name(func) in _FIELD_CALLS:
                self._field(node)
            case _ if _holds_old(node):
                self._by_hand(node, "expression", f'holds "{OLD}"')
            case _ if not _mentions_key(node):
                self._by_hand(node, "expression", "cannot be resolved here")

    def _field(self, node: ast.Call) -> None:
        kind = f"default of {_last_name(node.func)}(…)"
        if node.args and not _is_key_constant(node.args[0]):
            self._value(node.args[0], kind)
        for keyword in node.keywords:
            if keyword.arg in _DEFAULT_KEYWORDS:
                self._value(keyword.value, kind)
            elif keyword.arg in ("default_factory", "factory") and isinstance(keyword.value, ast.Lambda):
                self._value(keyword.value.body, kind)
            elif _holds_old(keyword.value):
                self._by_hand(keyword.value, kind)

    def _name(self, node: ast.Name, name: str, kind: str) -> None:
        if is_key(name):
            return  # passed on: its own assignments and defaults are looked at where they stand
        known = self.literals.get(name, [])
        old = [constant for constant in known if constant.value == OLD]
        if old:
            lines = ", ".join(str(constant.lineno) for constant in old)
            self._by_hand(node, f"variable as {kind}", f'{name} is "{OLD}" at line {lines}')
        elif not known or self.bindings.get(name, 0) != len(known):
            self._by_hand(node, f"variable as {kind}", f"{name} cannot be resolved here")

    # Where it stands in the text.

    def _literal(self, node: ast.Constant, kind: str) -> None:
        start, end = self._span(node)
        match = _LITERAL.fullmatch(self.text[start:end])
        # A quote inside means that several literals side by side make up the word.
        if match is None or match[1][0] in match[2]:
            self._by_hand(node, kind, f'spells "{OLD}" in pieces')
            return
        body = (start + match.start(2), start + match.end(2))
        self.found[body] = Spot(*body, kind)

    def _by_hand(self, node: ast.AST, kind: str, note: str = "") -> None:
        start, end = self._span(node)
        self.found.setdefault((start, end), Spot(start, end, kind, by_hand=True, note=note))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        line, column, end_line, end_column = (
            getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")
        )
        return self._offset(line, column), self._offset(end_line, end_column)

    def _offset(self, line: int, column: int) -> int:
        """The character that ``column``, counted by the parser in UTF-8 bytes, stands for."""
        start = self.line_starts[line - 1]
        text = self.text[start : start + column]  # no character is less than a byte
        return start + (column if text.isascii() else len(text.encode()[:column].decode()))


def _defaults(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    if arguments.defaults:
        yield from zip(positional[-len(arguments.defaults) :], arguments.defaults, strict=True)
    for parameter, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield parameter, default


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _is_scan(name: str) -> bool:
    """Whether a function's name says that it is a selective scan, ours or upstream's."""
    flat = name.replace("_", "").lower()
    return "selectivescan" in flat or "ss2dscan" in flat


def _is_key_constant(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and is_key(node.value)


def _mentions_key(node: ast.AST) -> bool:
    names: Iterable[object] = (
        getattr(part, "id", None) or getattr(part, "attr", None) or getattr(part, "value", None)
        for part in ast.walk(node)
    )
    return any(is_key(name) for name in names)


def _holds_old(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Constant) and part.value == OLD for part in ast.walk(node))
