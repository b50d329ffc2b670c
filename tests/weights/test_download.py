"""Downloads from a server that misbehaves: one good file or one clear error, never a bad file in its place."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import pytest
import torch

import vmamba
from vmamba import CheckpointError, ConfigError, OutputError
from vmamba.weights import OFFICIAL, OfficialWeights, fetch, fetch_official
from vmamba.weights.download import transfer
from vmamba.weights.pickled import check_pickled_file

CONTENT = bytes(range(256)) * 1024
HALF = len(CONTENT) // 2
DIGEST = hashlib.sha256(CONTENT).hexdigest()

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers each request with the next of its behaviours, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours: list[Behaviour] = [good()]
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.released = threading.Event()  # lets go what stalls

    def url(self, path: str = "weights.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]

    def handle_error(self, *_: object) -> None:
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        at = min(len(self.server.requests), len(self.server.behaviours) - 1)
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.behaviours[at](self)

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def good(content: bytes = CONTENT, etag: str | None = '"one"', **headers: object) -> Behaviour:
    """Serve a file as it should be done: the rest of it where the client has the beginning of this very file."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if asked and etag and handler.headers.get("If-Range") == etag:
            start = int(asked[1])
            handler.head(
                206,
                ETag=etag,
                Content_Length=len(content) - start,
                Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}",
            )
            handler.wfile.write(content[start:])
        else:
            handler.head(200, ETag=etag, Content_Length=len(content), **headers)
            handler.wfile.write(content)

    return answer


def broken_off(etag: str | None = '"one"', how: str = "reset", **headers: object) -> Behaviour:
    """Announce the whole file and send half of it; then reset the connection, close it, or say nothing more."""

    def answer(handler: Handler) -> None:
        handler.head(200, **{"ETag": etag, "Content_Length": len(CONTENT), **headers})
        handler.wfile.write(CONTENT[:HALF])
        handler.wfile.flush()
        if how == "stall":
            handler.server.released.wait(20)
        elif how == "reset":
            time.sleep(0.05)  # a reset drops what the client has not read yet
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    return answer


def status(code: int, **headers: object) -> Behaviour:
    return lambda handler: handler.head(code, Content_Length=0, **headers)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join(10)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache/weights.bin"


def get(server: Server, place: Path, **options: object) -> Path:
    return fetch(server.url(), place, **{"timeout": 20, "wait": 0.01, **options})


def left(place: Path) -> set[str]:
    """The files beside the lock, which some versions of filelock leave."""
    return {file.name for file in place.parent.iterdir() if file.suffix != ".lock"}


def test_a_good_file_is_fetched_once_and_recorded(server: Server, place: Path) -> None:
    assert get(server, place) == place
    assert place.read_bytes() == CONTENT
    assert left(place) == {"weights.bin", "weights.bin.sha256"}
    assert (place.parent / "weights.bin.sha256").read_text() == f"{DIGEST}  weights.bin\n"
    assert place.stat().st_mode & 0o777 == 0o666 & ~_umask()
    get(server, place)
    assert len(server.requests) == 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_a_broken_transfer_is_resumed(how: str, server: Server, place: Path) -> None:
    server.behaviours = [broken_off(how=how), good()]
    get(server, place, timeout=1 if how == "stall" else 20)
    assert place.read_bytes() == CONTENT
    first, *rest = server.ranges()
    assert first is None
    assert re.fullmatch(r"bytes=\d+-", rest[-1] or "")
    assert left(place) == {"weights.bin", "weights.bin.sha256"}


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server, place: Path) -> None:
    server.behaviours = [broken_off(how="close"), good()]
    with pytest.raises(
        CheckpointError, match=rf"sent {HALF} of {len(CONTENT)} bytes, after 1 attempts; the {HALF} bytes"
    ):
        get(server, place, attempts=1)
    assert left(place) == {"weights.bin.part", "weights.bin.part.json"}
    get(server, place)
    assert server.ranges() == [None, f"bytes={HALF}-"]
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert place.read_bytes() == CONTENT


def wrong_rest(etag: str | None, range_given: str | None) -> Behaviour:
    """A rest of the right length that is not this file's, where a rest is asked for."""

    def answer(handler: Handler) -> None:
        if "Range" in handler.headers:
            handler.head(206, ETag=etag, Content_Length=len(CONTENT) - HALF, Content_Range=range_given)
            handler.wfile.write(bytes(len(CONTENT) - HALF))
        else:
            good()(handler)

    return answer


def no_ranges(code: int) -> Behaviour:
    """Answer a request for a rest with the whole file, or with an error."""
    return lambda handler: (good(etag=None) if code == 200 or "Range" not in handler.headers else status(code))(handler)


@pytest.mark.parametrize(
    "server_now",
    [
        no_ranges(200),
        no_ranges(416),
        good(etag='"two"'),
        wrong_rest('"two"', f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"),
        wrong_rest('"one"', f"bytes {HALF - 1}-{len(CONTENT) - 2}/{len(CONTENT)}"),
        wrong_rest('"one"', f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT) + 1}"),
        wrong_rest('"one"', None),
    ],
    ids=["no ranges", "416", "new file", "wrong file", "wrong start", "wrong total", "no range"],
)
def test_what_cannot_be_resumed_starts_anew(server_now: Behaviour, server: Server, place: Path) -> None:
    server.behaviours = [broken_off(how="close"), server_now]
    get(server, place)
    assert place.read_bytes() == CONTENT
    assert server.ranges() in ([None, f"bytes={HALF}-"], [None, f"bytes={HALF}-", None])


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_proof_that_it_is_the_same_file_nothing_is_resumed(
    etag: str | None, server: Server, place: Path
) -> None:
    server.behaviours = [broken_off(etag, how="close"), good(etag=etag)]
    get(server, place)
    assert server.ranges() == [None, None]
    assert place.read_bytes() == CONTENT


def test_a_date_is_a_proof_too(server: Server, place: Path) -> None:
    date = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.behaviours = [broken_off(None, how="close", Last_Modified=date), good()]
    get(server, place)
    assert server.requests[1][1]["If-Range"] == date
    assert place.read_bytes() == CONTENT


def test_bytes_from_another_address_are_not_gone_on_with(server: Server, place: Path) -> None:
    server.behaviours = [broken_off(how="close"), good()]
    with pytest.raises(CheckpointError):
        get(server, place, attempts=1)
    fetch(server.url("elsewhere.bin"), place, wait=0.01)
    assert server.ranges() == [None, None]
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (broken_off(how="stall"), "no data for 0.2 s"),
        (broken_off(how="reset", etag=None), "the connection broke|bytes"),
        (broken_off(how="close", etag=None), f"the server sent {HALF} of {len(CONTENT)} bytes"),
        (status(503), "answered 503"),
        (status(429), "answered 429"),
        (lambda handler: handler.wfile.write(b"HTTP/1.0 nonsense\r\n\r\n"), "the connection broke"),
        (lambda handler: None, "the connection broke"),
    ],
    ids=["stall", "reset", "wrong length", "503", "429", "no HTTP", "no answer"],
)
def test_what_does_not_get_better_is_one_error(behaviour: Behaviour, words: str, server: Server, place: Path) -> None:
    server.behaviours = [behaviour]
    with pytest.raises(CheckpointError, match=words) as caught:
        get(server, place, attempts=3, timeout=0.2 if "no data" in words else 20)
    assert len(server.requests) == 3
    assert not place.exists()
    assert f"put it at {place}" in str(caught.value)
    assert server.url() in str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (status(404), "answered 404"),
        (status(403), "answered 403"),
        (status(302, Location="/weights.bin"), "redirects in circles"),
        (status(302, Location="file:///etc/hostname"), "not allowed"),
        (status(302, Location="http://[nonsense"), "cannot be used"),
        (status(302, Location="ftp://127.0.0.1/weights.bin"), "less safe"),
    ],
    ids=["404", "403", "loop", "file", "nonsense", "ftp"],
)
def test_what_cannot_get_better_is_not_tried_again(
    behaviour: Behaviour, words: str, server: Server, place: Path
) -> None:
    server.behaviours = [behaviour]
    with pytest.raises(CheckpointError, match=words) as caught:
        get(server, place, wait=100)
    assert len(server.requests) <= 6
    assert "weights.bin is missing and cannot be downloaded: " in str(caught.value)
    assert left(place) == set()


def test_redirects_are_followed_but_not_for_ever(server: Server, place: Path) -> None:
    hops = [status(302, Location=f"/hop{i}") for i in range(20)]
    server.behaviours = [*hops[:2], good()]
    get(server, place)
    assert [path for path, _ in server.requests] == ["/weights.bin", "/hop0", "/hop1"]
    place.unlink()
    server.requests.clear()
    server.behaviours = hops
    with pytest.raises(CheckpointError, match="redirects in circles"):
        get(server, place)
    assert len(server.requests) <= 6


def test_an_encrypted_address_does_not_lead_to_an_open_one() -> None:
    request = transfer.Request("https://127.0.0.1/a")
    with pytest.raises(transfer.HTTPError, match="less safe"):
        transfer._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://127.0.0.1/a")


def test_a_wrong_hash_is_refused_and_leaves_nothing(server: Server, place: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"SHA-256 {DIGEST}, want {'0' * 64}"):
        get(server, place, sha256="0" * 64)
    assert left(place) == set()
    assert get(server, place, sha256=DIGEST.upper()).read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match="want 12345678"):
        get(server, place, sha256="12345678")


def test_a_hash_in_the_name_is_compared(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its name contradicts"):
        get(server, tmp_path / "weights-0123abcd.bin")
    assert left(tmp_path / "x") == set()
    get(server, tmp_path / f"weights-{DIGEST[:8]}.bin")


def test_what_is_no_checkpoint_is_refused(server: Server, place: Path) -> None:
    """A sign-in page, and a file that is shorter than it was but says so consistently."""
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(100)}}, buffer)
    whole = buffer.getvalue()
    server.behaviours = [good(b"<!DOCTYPE html>"), good(whole[:-30]), good(whole)]
    with pytest.raises(CheckpointError, match=r"serves is refused: .* not a PyTorch checkpoint .*<!DOCTYP"):
        get(server, place, check=check_pickled_file)
    with pytest.raises(CheckpointError, match="cut short"):
        get(server, place, check=check_pickled_file)
    assert left(place) == set()
    get(server, place, check=check_pickled_file)
    assert place.read_bytes() == whole
    legacy = place.with_name("legacy.pth")
    torch.save({"a": torch.ones(1)}, legacy, _use_new_zipfile_serialization=False)
    check_pickled_file(legacy)


def test_a_file_that_changed_since_its_first_use_is_refused(server: Server, place: Path) -> None:
    get(server, place)
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    place.write_bytes(changed)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"{DIGEST} was recorded at its first use"):
            get(server, place)
    place.unlink()
    server.behaviours = [good(bytes(changed))]
    with pytest.raises(CheckpointError, match="was recorded"):
        get(server, place)
    place.with_name("weights.bin.sha256").write_text("not a digest")
    with pytest.raises(CheckpointError, match="holds no SHA-256"):
        get(server, place)
    assert left(place) == {"weights.bin.sha256"}


def test_a_file_put_there_by_hand_is_checked_and_recorded(server: Server, place: Path) -> None:
    place.parent.mkdir()
    place.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        get(server, place, check=check_pickled_file)
    assert left(place) == {"weights.bin"}
    torch.save({}, place)
    get(server, place, check=check_pickled_file)
    assert left(place) == {"weights.bin", "weights.bin.sha256"}
    assert server.requests == []


def in_another_process(url: str, place: Path, barrier: object) -> None:
    barrier.wait(20)
    assert fetch(url, place, wait=0.01, timeout=20).read_bytes() == CONTENT


fork = multiprocessing.get_context("fork")  # a fresh process would import torch first


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_download_once(server: Server, place: Path) -> None:
    barrier = fork.Barrier(2)
    processes = [fork.Process(target=in_another_process, args=(server.url(), place, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 1
    assert left(place) == {"weights.bin", "weights.bin.sha256"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_process_leaves_no_bad_file_and_no_lock(server: Server, place: Path) -> None:
    server.behaviours = [broken_off(how="stall"), good()]
    process = fork.Process(target=in_another_process, args=(server.url(), place, fork.Barrier(1)))
    process.start()
    part = place.with_name("weights.bin.part")
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    process.kill()
    process.join(20)
    assert not place.exists()
    get(server, place)
    assert place.read_bytes() == CONTENT
    assert re.fullmatch(r"bytes=\d+-", server.ranges()[1] or "")


def test_one_waits_while_another_downloads(server: Server, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    place.parent.mkdir()
    results: list[Path] = []
    with caplog.at_level(logging.INFO, "vmamba"):
        with filelock.FileLock(f"{place}.lock"):
            thread = threading.Thread(target=lambda: results.append(get(server, place)))
            thread.start()
            wait_for(lambda: "waiting for another process" in caplog.text)
            place.write_bytes(CONTENT)
        thread.join(20)
    assert results == [place]
    assert server.requests == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_offline_it_says_what_is_missing_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def no_network(*words: object, **_: object) -> None:
        asked.append(words)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = OFFICIAL["vmamba_tiny_s1l8"]
    with pytest.raises(CheckpointError) as caught:
        vmamba.create_model("vmamba_tiny_s1l8", pretrained=True)
    for words in (
        f"{weights.file_name} is missing",
        "no connection (Temporary failure in name resolution)",
        f"Get {weights.url}",
        f"put it at {tmp_path / 'hub/checkpoints' / weights.file_name}",
    ):
        assert words in str(caught.value)
    assert len(asked) == 1


def test_a_refused_connection_is_tried_again_and_reported(place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.bin"
    with pytest.raises(CheckpointError, match=r"no connection \(Connection refused\), after 2 attempts"):
        fetch(url, place, attempts=2, wait=0.01)


def test_places_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another place"):
        get(server, tmp_path / "file/weights.bin")
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        get(server, tmp_path / "folder.bin")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    place = tmp_path / "cache/weights.bin"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        get(server, place)
    assert left(place) == set()


def test_a_shared_cache_that_cannot_be_written_can_be_read(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.parent.mkdir()
    place.write_bytes(CONTENT)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    assert get(server, place) == place
    assert left(place) == {"weights.bin"}


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "data:,a", "weights.bin", ""])
def test_only_http_is_downloaded(url: str, place: Path) -> None:
    with pytest.raises(CheckpointError, match="https://"):
        fetch(url, place)
    assert not place.parent.exists()


def test_the_progress_bar_is_on_standard_error(server: Server, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get(server, place, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "weights.bin" in err
    place.unlink()
    get(server, place)
    assert capsys.readouterr() == ("", "")


def test_pretrained_goes_through_the_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = vmamba.create_model("vmamba_nano")
    other = {name: value + 1 for name, value in theirs.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"model": theirs.state_dict(), "model_ema": other, "epoch": 3}, buffer)
    server.behaviours = [good(buffer.getvalue())]
    monkeypatch.setitem(OFFICIAL, "vmamba_nano", OfficialWeights("vmamba_nano", server.url("nano.pth")))
    assert fetch_official("vmamba_nano") == tmp_path / "hub/checkpoints/nano.pth"
    ours = vmamba.create_model("vmamba_nano", pretrained=True)
    assert torch.equal(ours.classifier.head.weight, theirs.classifier.head.weight)
    ours = vmamba.create_model("vmamba_nano", pretrained=True, key="model_ema")
    assert torch.equal(ours.classifier.head.weight, theirs.classifier.head.weight + 1)
    assert len(server.requests) == 1


def test_models_without_released_weights_say_so() -> None:
    with pytest.raises(CheckpointError, match="no weights were released for vmamba_nano; those with weights: van"):
        vmamba.create_model("vmamba_nano", pretrained=True)
    with pytest.raises(ConfigError, match="did you mean 'vmamba_tiny_s1l8'"):
        fetch_official("vmamba_tiny_s1l9")
