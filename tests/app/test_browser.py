"""The page in a real browser: Debian's Chromium without a window, driven by playwright."""

from __future__ import annotations

import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_images import written
from rich.console import Console

from vmamba.app.serve import AppConfig, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

PATIENCE = 120_000  # milliseconds: machines that test may be busy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def served(colour_run: Path) -> Iterator[tuple[str, Path]]:
    """The page's address, and the folder where uploads lie."""
    said, stop = io.StringIO(), threading.Event()
    config = AppConfig((str(colour_run),), port=0, device="cpu")
    thread = threading.Thread(target=serve, args=(config, Console(file=said, width=200), stop))
    thread.start()
    try:
        pattern = r"at (http://127\.0\.0\.1:\d+/).*\nuploads lie in (\S+) "
        while (found := re.search(pattern, said.getvalue())) is None:
            assert thread.is_alive(), said.getvalue()
            time.sleep(0.05)
        yield found[1], Path(found[2])
    finally:
        stop.set()
        thread.join()
    assert not Path(found[2]).exists()


class Browser:
    """A page that remembers what went wrong in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address, self.wrong = page, address, []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self._look_at(request.url))

    def _look_at(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"asked for {url}")

    def upload(self, path: Path) -> str:
        """What the page says to a file."""
        self.page.goto(self.address)
        self.page.set_input_files("#upload input[type=file]", path)
        note = self.page.locator("#note")
        api.expect(note).not_to_contain_text("Choose a model", timeout=PATIENCE)
        said: str = note.inner_text()
        return said

    def picture(self, place: str) -> str:
        """The address of a picture that is there."""
        image = self.page.locator(f"#{place} img")
        image.wait_for(state="visible")
        source: str = image.get_attribute("src")
        return source


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any, served: tuple[str, Path]) -> Iterator[Browser]:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    opened = Browser(page, served[0])
    yield opened
    page.close()
    assert opened.wrong == []


def test_an_image_is_answered_and_a_click_changes_the_scan_map(
    browser: Browser, served: tuple[str, Path], files: dict[str, Path]
) -> None:
    said = browser.upload(files["plain.png"])
    assert re.search(r"\(classification\): \d+ ms on cpu; scans by (oflex|torch)", said)
    assert browser.page.locator("#answer").inner_text().count("%") == 3  # of three classes
    likeliest = browser.picture("cam")
    chosen = browser.page.locator("#class input")
    assert chosen.input_value() == browser.page.locator("#answer h2").inner_text() == "red"
    chosen.click()
    browser.page.get_by_role("option", name="green").click()
    api.expect(browser.page.locator("#cam img")).not_to_have_attribute("src", likeliest, timeout=PATIENCE)
    assert chosen.input_value() == "green"
    seen = browser.page.locator("#seen img")
    seen.wait_for(state="visible")
    seen.click(position={"x": 20, "y": 20})
    first = browser.picture("scan")
    seen.click(position={"x": 150, "y": 150})
    api.expect(browser.page.locator("#scan img")).not_to_have_attribute("src", first, timeout=PATIENCE)
    assert browser.picture("scan") != first
    assert any(served[1].rglob("plain.png"))  # its own folder, which goes with the page


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text.jpg", "cannot read image text.jpg: not an image that Pillow knows"),
        ("empty.png", "cannot read image empty.png: the file is empty"),
        ("huge.png", "this page takes 50 million"),
        ("animated.gif", "ms on cpu"),
        ("cmyk.jpg", "ms on cpu"),
        ("turned.jpg", "ms on cpu"),
        ("sixteen.png", "ms on cpu"),
    ],
)
def test_every_file_gets_an_answer_or_a_message(browser: Browser, files: dict[str, Path], name: str, said: str) -> None:
    found = browser.upload(files[name])
    assert said in found
    assert "\n" not in found.strip()
    if "ms on" in said:
        browser.picture("seen")
    else:
        assert browser.page.locator("#seen img").count() == 0


@pytest.mark.long
def test_fifty_at_once_are_all_answered(served: tuple[str, Path], files: dict[str, Path], colour_run: Path) -> None:
    client = pytest.importorskip("gradio_client")
    asked = client.Client(served[0], verbose=False, download_files=False, analytics_enabled=False)
    file = client.handle_file(str(files["plain.png"]))
    jobs = [asked.submit(str(colour_run), file, api_name="/look") for _ in range(50)]
    answers = [job.result(timeout=5 * PATIENCE / 1000) for job in jobs]
    assert all("ms on cpu" in answer[0] for answer in answers)


@pytest.mark.long
def test_a_narrow_screen_shows_all_of_it(browser: Browser, files: dict[str, Path]) -> None:
    browser.page.set_viewport_size({"width": 390, "height": 844})
    browser.upload(files["plain.png"])
    browser.picture("cam")
    assert browser.page.evaluate("document.documentElement.scrollWidth") <= 390
