"""What `vmamba app` does: a page on this machine alone, and nothing left of what was uploaded when it ends."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.app.answers import example_images
from vmamba.app.models import Models, found_sources
from vmamba.data import IMAGE_SUFFIXES
from vmamba.errors import ConfigError, OutputError
from vmamba.evaluate.predict import find_images

if TYPE_CHECKING:
    from rich.console import Console

#: Most examples on the page.
_EXAMPLES = 12


@dataclass(frozen=True)
class AppConfig:
    """What the page offers, and to whom.

    Attributes:
        models: Run folders, weight files, files of `vmamba export`, and names of released weights; by default the
            runs in the folder runs and the released weights that lie in the cache.
        runs: Folder of runs to offer where no model is named.
        examples: Image files and folders to try; by default two photographs of scikit-learn's.
        host: Address that is listened on; 0.0.0.0 lets other machines in.
        port: Of that address; 0 = any free one.
        share: Whether to ask Gradio's servers for a public link.
        megabytes: Most of an uploaded file.
        device: auto, cpu, cuda, mps or xpu.
    """

    models: tuple[str, ...] = ()
    runs: Path = Path("runs")
    examples: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    megabytes: int = 20
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}: want 0 to 65535")
        if self.megabytes < 1:
            raise ConfigError(f"megabytes={self.megabytes}: want 1 or more")


def serve(config: AppConfig, console: Console, stop: threading.Event | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        config: the options.
        console: where the address goes.
        stop: ends it too.

    Raises:
        ConfigError: Gradio is not installed, or there is no model. CheckpointError: the first model cannot be loaded.
        DataError: examples that cannot be found. OutputError: the port is taken.
    """
    check_gradio()
    models = Models(config.models or found_sources(config.runs), config.device)
    models.open(models.names[0])  # so that a mistake is told here, not in the browser
    examples = find_images(config.examples, IMAGE_SUFFIXES) if config.examples else example_images()
    with uploads_folder() as folder, _ended_by(signal.SIGTERM, stop := stop or threading.Event()):
        from vmamba.app.page import build_page  # it imports Gradio, which looks at the environment

        page = build_page(models, examples[:_EXAMPLES], config.megabytes * 1_000_000)
        address = launch(page, config, examples[:_EXAMPLES])
        try:
            console.print(f"the page is at {address}; Ctrl-C ends it", soft_wrap=True, markup=False)
            console.print(f"uploads lie in {folder} until then", soft_wrap=True, markup=False)
            while not stop.wait(0.5):
                pass
        finally:
            page.close(verbose=False)


def check_gradio() -> None:
    """Make sure that Gradio is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError('the page needs Gradio, which is not installed: pip install "vmamba[app]"')


def launch(page: Any, config: AppConfig, examples: list[Path]) -> str:
    """Start serving in a thread; return the address.

    Raises:
        OutputError: it cannot listen there.
    """
    try:
        _, address, shared = page.launch(
            server_name=config.host,
            server_port=config.port or None,
            share=config.share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            max_file_size=config.megabytes * 1_000_000,
            allowed_paths=[str(path) for path in examples],
            footer_links=[],
        )
    except OSError as error:
        raise OutputError(f"cannot listen on {config.host}:{config.port}: {error}; give another port") from error
    where: str = shared or address
    return where


@contextmanager
def uploads_folder() -> Iterator[Path]:
    """Within it Gradio keeps uploads in a folder of their own, which is gone afterwards, and tells nobody anything."""
    folder = Path(tempfile.mkdtemp(prefix="vmamba-app-"))
    ours = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ended_by(number: int, stop: threading.Event) -> Iterator[None]:
    """Within it a signal sets ``stop``, where signals can be handled: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        stop.set()

    before: Callable[..., Any] | int | None = signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, before)
