"""Finds the old backend name in YAML, JSON, JSON lines and the code cells of notebooks.

Each format is read by a real parser into one small tree of scalars that know where they stand in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vmamba.migrate.python import find_python
from vmamba.migrate.spot import OLD, Spot, UnparsableError, buried_spot, doubt, is_buried, is_key, is_option_word


@dataclass(eq=False)
class Scalar:
    """A leaf: its value if it is text, and the characters between its quotes."""

    value: str | None
    start: int
    end: int
    replaceable: bool = True


@dataclass(eq=False)
class Mapping:
    """Key and value pairs in their order."""

    pairs: list[tuple[Node, Node]] = field(default_factory=list)


@dataclass(eq=False)
class Sequence:
    """Items in their order."""

    items: list[Node] = field(default_factory=list)


Node = Scalar | Mapping | Sequence


def find_yaml(text: str) -> list[Spot]:
    """Return the spots of the YAML documents in ``text``.

    Raises:
        UnparsableError: not YAML.
    """
    return _find_in_trees(text, _yaml_trees(text))


def find_json(text: str) -> list[Spot]:
    """Return the spots of the JSON document ``text``.

    Raises:
        UnparsableError: not JSON.
    """
    return _find_in_trees(text, [_json_tree(text, 0)])


def find_json_lines(text: str) -> list[Spot]:
    """Return the spots of ``text``, one JSON document a line.

    Raises:
        UnparsableError: a line is not JSON.
    """
    trees, start = [], 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            trees.append(_json_tree(line, start, number))
        start += len(line) + 1
    return _find_in_trees(text, trees)


def find_notebook(text: str) -> list[Spot]:
    """Return the spots in the Python code cells of the Jupyter notebook ``text``.

    Raises:
        UnparsableError: not JSON.
    """
    root = _json_tree(text, 0)
    if not _is_python_notebook(root):
        return []
    spots: list[Spot] = []
    cells = [node for node in _nodes([root]) if isinstance(node, Mapping) and _text_at(node, "cell_type") == "code"]
    for number, cell in enumerate(cells, start=1):
        source = _at(cell, "source") or _at(cell, "input")  # `input` before version 4 of the format
        lines = source.items if isinstance(source, Sequence) else [source]
        spots += _find_in_cell(text, [line for line in lines if isinstance(line, Scalar)], f"code cell {number}")
    return spots


def _find_in_trees(text: str, roots: list[Node]) -> list[Spot]:
    values: dict[int, Scalar] = {}
    elsewhere: set[int] = set()  # also the value of something that is not the option, through an anchor
    spots: list[Spot] = []

    for node in _nodes(roots):
        if isinstance(node, Mapping):
            for key, value in node.pairs:
                if isinstance(key, Scalar) and is_key(key.value):
                    if isinstance(value, Scalar):
                        values[id(value)] = value
                    else:
                        spots += [
                            Spot(leaf.start, leaf.end, "one of several values", by_hand=True)
                            for leaf in _nodes([value])
                            if isinstance(leaf, Scalar) and leaf.value == OLD
                        ]
                else:
                    elsewhere.add(id(value))
        elif isinstance(node, Sequence):
            before: Node | None = None
            for item in node.items:
                if isinstance(item, Scalar) and isinstance(before, Scalar) and is_option_word(before.value):
                    values[id(item)] = item
                else:
                    elsewhere.add(id(item))
                before = item
        elif node.value is not None and is_buried(node.value):
            spots.append(buried_spot(text, node.start, node.end))

    for value in values.values():
        if value.value != OLD:
            if value.value is not None and (reason := doubt(value.value)) and not is_buried(value.value):
                spots.append(Spot(value.start, value.end, "value", by_hand=True, note=reason))
        elif id(value) in elsewhere:
            note = "its anchor is also used elsewhere"
            spots.append(Spot(value.start, value.end, "value", by_hand=True, note=note))
        elif value.replaceable:
            spots.append(Spot(value.start, value.end, "value"))
        else:
            spots.append(Spot(value.start, value.end, "value", by_hand=True, note="spread over several lines"))
    return sorted(spots, key=lambda spot: spot.start)


def _nodes(roots: list[Node]) -> Iterator[Node]:
    """Every node once, also where anchors make the tree a graph."""
    seen: set[int] = set()
    pending = list(reversed(roots))
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, Mapping):
            pending += [part for pair in reversed(node.pairs) for part in reversed(pair)]
        elif isinstance(node, Sequence):
            pending += reversed(node.items)


# YAML


def _yaml_trees(text: str) -> list[Node]:
    import yaml

    try:
        # A node's mark begins at its anchor or tag; the scalar's own token begins where the scalar does.
        tokens = yaml.scan(text, Loader=yaml.SafeLoader)
        scalar_starts = {
            token.end_mark.index: token.start_mark.index for token in tokens if isinstance(token, yaml.ScalarToken)
        }
        documents = [root for root in yaml.compose_all(text, Loader=yaml.SafeLoader) if root is not None]
    except yaml.YAMLError as error:
        raise UnparsableError(_yaml_message(error)) from error
    except RecursionError as error:
        raise UnparsableError("too deeply nested") from error

    trees: dict[int, Node] = {}

    def tree_of(node: yaml.Node) -> tuple[Node, bool]:
        """The tree of ``node``, whose children are still to be filled in, and whether it is new."""
        if id(node) in trees:
            return trees[id(node)], False
        tree: Node
        if isinstance(node, yaml.ScalarNode):
            end = node.end_mark.index
            tree = _yaml_scalar(text, node, scalar_starts.get(end, end), end)
        else:
            tree = Mapping() if isinstance(node, yaml.MappingNode) else Sequence()
        trees[id(node)] = tree
        return tree, True

    roots = [tree_of(document)[0] for document in documents]
    pending = list(documents)
    while pending:
        node = pending.pop()
        tree = trees[id(node)]
        if isinstance(node, yaml.MappingNode) and isinstance(tree, Mapping):
            for key, value in node.value:
                (key_tree, new_key), (value_tree, new_value) = tree_of(key), tree_of(value)
                tree.pairs.append((key_tree, value_tree))
                pending += [child for child, new in ((key, new_key), (value, new_value)) if new]
        elif isinstance(node, yaml.SequenceNode) and isinstance(tree, Sequence):
            for item in node.value:
                item_tree, new = tree_of(item)
                tree.items.append(item_tree)
                pending += [item] if new else []
    return roots


def _yaml_scalar(text: str, node: object, start: int, end: int) -> Scalar:
    """Find the value's own characters: between the quotes, or the one line of a block."""
    value: str = getattr(node, "value", "")
    style: str | None = getattr(node, "style", None)
    if getattr(node, "tag", None) != "tag:yaml.org,2002:str":
        return Scalar(None, start, end)
    if style in ("'", '"'):
        return Scalar(value, start + 1, end - 1)
    if style in ("|", ">") and value == OLD:
        header = re.search(r"[\r\n]", text[start:end])  # where a comment may say anything
        at = text.index(OLD, start + header.start() if header else start, end)
        return Scalar(OLD, at, at + len(OLD))
    return Scalar(value, start, end, replaceable=text[start:end] == value)


def _yaml_message(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


# JSON

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)


def _json_tree(text: str, offset: int, line: int | None = None) -> Node:
    """Read one document; positions count from ``offset`` characters before it."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise UnparsableError(f"line {line or error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise UnparsableError("too deeply nested") from error
    except ValueError as error:  # an integer of too many digits
        raise UnparsableError(str(error)) from error

    # The text is known to be JSON, so its punctuation needs no second check.
    top = Sequence()
    open_nodes: list[Mapping | Sequence] = [top]
    keys: list[Node | None] = [None]
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in "}]":
            open_nodes.pop()
            keys.pop()
            continue
        if word in ":,":
            continue
        node: Node
        if word in "{[":
            node = Mapping() if word == "{" else Sequence()
        elif word[0] == '"':
            node = Scalar(json.loads(word), offset + token.start() + 1, offset + token.end() - 1)
        else:
            node = Scalar(None, offset + token.start(), offset + token.end())
        parent, key = open_nodes[-1], keys[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif key is None:
            keys[-1] = node
        else:
            parent.pairs.append((key, node))
            keys[-1] = None
        if not isinstance(node, Scalar):
            open_nodes.append(node)
            keys.append(None)
    return top.items[0]


# Notebooks

_JSON_CHARACTER = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|[^\\]", re.DOTALL)
_MAGIC_LINE = re.compile(r"^(\s*)[%!?]", re.MULTILINE)
_PYTHON_CELL_MAGIC = re.compile(r"\s*%%(time|timeit|capture|prun)\b")


def _at(node: Node, *keys: str) -> Node | None:
    """The node under ``keys``, or None."""
    found: Node | None = node
    for key in keys:
        pairs = found.pairs if isinstance(found, Mapping) else []
        found = next((value for name, value in pairs if isinstance(name, Scalar) and name.value == key), None)
    return found


def _text_at(node: Node, *keys: str) -> str | None:
    found = _at(node, *keys)
    return found.value if isinstance(found, Scalar) else None


def _is_python_notebook(root: Node) -> bool:
    names = [
        _text_at(root, "metadata", "kernelspec", "language"),
        _text_at(root, "metadata", "language_info", "name"),
    ]
    languages = [name.lower() for name in names if name]
    return not languages or any("python" in language for language in languages)


def _find_in_cell(text: str, lines: list[Scalar], cell: str) -> list[Spot]:
    """Find in the joined ``lines`` of one cell, and carry the places back into the escaped ``text``."""
    code = ""
    places: list[tuple[int, int, int]] = []  # start and end in `text`, and the line, of each character of `code`
    for number, line in enumerate(lines):
        code += line.value or ""
        for character in _JSON_CHARACTER.finditer(text, line.start, line.end):
            places.append((character.start(), character.end(), number))
    if "backend" not in code.lower() or (code.lstrip().startswith("%%") and not _PYTHON_CELL_MAGIC.match(code)):
        return []
    assert len(places) == len(code)
    try:
        found = find_python(code)
    except UnparsableError:
        try:
            # A comment sign is as long as the magic sign that it replaces, so every place stays.
            found = find_python(_MAGIC_LINE.sub(r"\1#", code))
        except UnparsableError as error:
            return [Spot(lines[0].start, lines[0].end, cell, by_hand=True, note=f"does not parse: {error}")]
    spots = []
    for spot in found:
        (start, _, first), (_, end, last) = places[spot.start], places[spot.end - 1]
        torn = first != last and not spot.by_hand
        note = "spread over several lines" if torn else spot.note
        spots.append(Spot(start, end, f"{spot.kind} in {cell}", by_hand=spot.by_hand or torn, note=note))
    return spots
