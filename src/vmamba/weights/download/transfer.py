"""One HTTP download into a ``.part`` file that a later attempt can go on with."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from vmamba.errors import CheckpointError, OutputError, VMambaError

_BLOCK = 1 << 16
_WORTH_ANOTHER_TRY = {408, 416, 425, 429}  # and every 5xx


class Interrupted(Exception):  # noqa: N818 — not an error as long as there are attempts left
    """The transfer broke off for a reason that may pass."""


@dataclass(frozen=True)
class _Origin:
    """What a ``.part`` file's bytes are the beginning of."""

    url: str
    validator: str | None  # strong ETag or date; without one the rest cannot be asked for safely
    total: int | None  # bytes


class Part:
    """The bytes received so far of one file, with a note of what they belong to, both beside the file's place."""

    def __init__(self, destination: Path) -> None:
        self.path = destination.with_name(destination.name + ".part")
        self._note = destination.with_name(destination.name + ".part.json")

    def size(self) -> int:
        """Bytes received."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def origin(self, url: str) -> _Origin | None:
        """What the bytes belong to, if they can be continued from ``url``."""
        try:
            origin = _Origin(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return origin if origin.url == url and origin.validator and self.size() else None

    def note(self, origin: _Origin) -> None:
        """Write down what the bytes belong to."""
        self._note.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        """Delete bytes and note."""
        for path in (self.path, self._note):
            with suppress(FileNotFoundError):
                path.unlink()

    def move_to(self, destination: Path) -> None:
        """Put the complete file in its place."""
        os.replace(self.path, destination)
        self.discard()


class _Redirects(HTTPRedirectHandler):
    max_redirections = 5
    max_repeats = 2

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        legal = ("https:",) if req.type == "https" else ("https:", "http:")
        if not newurl.lower().startswith(legal):
            raise HTTPError(req.full_url, code, f"leads to {newurl}, which is less safe", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def transfer(url: str, part: Part, report: Callable[[int, int | None], None], timeout: float) -> None:
    """Make one attempt to complete ``part``, from where it stands if the server can do that, else from the start.

    Args:
        url: ``http`` or ``https``.
        part: what is there; afterwards it is complete and on disk.
        report: called with the bytes there are and the total, where it is known.
        timeout: seconds without a single byte after which the connection counts as stalled.

    Raises:
        Interrupted: worth another attempt; what came is kept where it can be continued.
        CheckpointError: not worth one: no such file, no network, refused, or sent in circles.
        OutputError: the disk refuses.
    """
    known = part.origin(url)
    headers = {"User-Agent": "vmamba", "Accept-Encoding": "identity"}
    if known is not None and known.validator:
        headers |= {"Range": f"bytes={part.size()}-", "If-Range": known.validator}
    try:
        with build_opener(_Redirects).open(Request(url, headers=headers), timeout=timeout) as response:
            start = _starting_point(response, known, part)
            length = response.headers.get("Content-Length", "")
            origin = _Origin(url, _validator(response.headers), start + int(length) if length.isdecimal() else None)
            _receive(response, part, start, origin, report)
    except HTTPError as error:
        with error:
            raise _refusal(error, url, part) from error
    except URLError as error:
        raise _no_connection(error.reason) from error
    except TimeoutError as error:
        raise Interrupted(f"no data for {timeout:g} s") from error
    except (http.client.HTTPException, OSError) as error:
        raise Interrupted(f"the connection broke ({str(error) or type(error).__name__})") from error
    except VMambaError:
        raise
    except ValueError as error:
        raise CheckpointError(f"an address cannot be used ({error})") from error
    if origin.total is not None and part.size() != origin.total:
        raise Interrupted(f"the server sent {part.size()} of {origin.total} bytes")


def _starting_point(response: http.client.HTTPResponse, known: _Origin | None, part: Part) -> int:
    """The byte that the response's body starts at."""
    if response.status == 200:
        return 0
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    start = part.size()
    if response.status == 206 and known is not None and given is not None:
        validator = _validator(response.headers)
        same = validator in (None, known.validator) and given[2] in ("*", str(known.total))
        if same and int(given[1]) == start:
            return start
    part.discard()
    raise Interrupted(f"the server answered {response.status} with another part than was asked for")


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag", "")
    # If-Range compares strongly, so a weak tag proves nothing.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _receive(
    response: http.client.HTTPResponse,
    part: Part,
    start: int,
    origin: _Origin,
    report: Callable[[int, int | None], None],
) -> None:
    try:
        if not start:
            part.discard()
        part.note(origin)
        file = part.path.open("ab")
    except OSError as error:
        raise _disk_refuses(part, error) from error
    with file:
        done = start
        report(done, origin.total)
        while block := response.read1(_BLOCK):
            try:
                file.write(block)
            except OSError as error:
                raise _disk_refuses(part, error) from error
            done += len(block)
            report(done, origin.total)
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise _disk_refuses(part, error) from error


def _disk_refuses(part: Part, error: OSError) -> OutputError:
    with suppress(OSError):
        part.discard()
    return OutputError(f"cannot write {part.path}: {error.strerror}; make room or choose another place")


def _refusal(error: HTTPError, url: str, part: Part) -> Exception:
    if error.code == 416:
        part.discard()
    if error.code in _WORTH_ANOTHER_TRY or error.code >= 500:
        return Interrupted(f"the server answered {error.code} {error.reason}")
    if 300 <= error.code < 400:
        reason = "redirects in circles" if "loop" in str(error.reason) else str(error.reason)
        return CheckpointError(f"{error.url} {' '.join(reason.split())}")
    return CheckpointError(f"the server of {url} answered {error.code} {error.reason}")


def _no_connection(reason: str | BaseException) -> Exception:
    text = getattr(reason, "strerror", None) or str(reason)
    if isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError)):
        return CheckpointError(f"no connection ({text})")
    if isinstance(reason, OSError):
        return Interrupted(f"no connection ({text})")
    return CheckpointError(f"no connection ({text})")
