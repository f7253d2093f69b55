"""The studio in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from disa.draw.folder import TEXT
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no browser to test the studio in: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

PATIENCE = 40_000
"""Milliseconds: a machine may be busy."""
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A studio of mar-digits, which has nothing to complain about."""
    command = [sys.executable, "-m", "disa", "studio", "--port", "0", "--device", "cpu", "--threads", "1", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first, process.communicate()
        yield json.loads(first)["url"]
    finally:
        process.terminate()
        _, complaints = process.communicate(timeout=30)
    assert "Traceback" not in complaints
    assert complaints.startswith("disa: ")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page of the studio in a browser of its own."""

    page: Any
    asked: list[str] = field(default_factory=list)
    """Every address that the browser asked for."""
    errors: list[str] = field(default_factory=list)

    def fill(self, name: str, value: str) -> None:
        self.page.fill(f"#{name} input, #{name} textarea", value)

    def value(self, name: str) -> str:
        return self.page.input_value(f"#{name} input, #{name} textarea")

    def settings(self, steps: str = "linear:3-1", labels: str = "3", seeds: str = "0", ar_steps: str = "4") -> None:
        """What is quick to draw."""
        self.fill("labels", labels)
        self.fill("seeds", seeds)
        self.fill("steps", steps)
        if not self.page.is_visible("#ar textarea, #ar input"):
            self.page.get_by_role("button", name="More settings").click()
        self.fill("ar", ar_steps)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def wait(self, selector: str, state: str = "visible") -> Any:
        return self.page.wait_for_selector(selector, state=state, timeout=PATIENCE)

    def said(self, name: str) -> str:
        return self.wait(f"#{name}-said p").inner_text()

    def draw(self, name: str = "draw") -> list[bytes]:
        """Press the button of a tab; the pictures that can be saved in the end."""
        # Pictures of the drawing before are taken away, so that they are not taken for new ones.
        self.page.evaluate(f"document.querySelectorAll('#{name}-stage button.save').forEach(e => e.remove())")
        self.page.click(f"#{name}-start")
        self.wait(f"#{name}-stage button.save, #{name}-said .wrong")
        return self.contents(f"#{name}-stage figure:has(button.save) img")

    def contents(self, selector: str) -> list[bytes]:
        """The PNG files of pictures."""
        return [
            b64decode(each.get_attribute("src").partition(",")[2]) for each in self.page.query_selector_all(selector)
        ]


Visitors = Callable[..., Visit]


@pytest.fixture(scope="module")
def usual(browser: Any) -> Any:
    """A browser that need not fetch everything for each page."""
    return browser.new_context(viewport=DESKTOP, accept_downloads=True)


@pytest.fixture
def visit(browser: Any, usual: Any, url: str) -> Iterator[Visitors]:
    contexts, pages = list[Any](), list[Any]()
    visits = list[Visit]()

    def arrive(**options: Any) -> Visit:
        context = usual
        if options:
            contexts.append(context := browser.new_context(**options))
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        found = Visit(page)
        visits.append(found)
        page.on("request", lambda request: found.asked.append(request.url))
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        page.goto(url)
        found.wait(".state.ready")
        return found

    yield arrive
    for each in (*pages, *contexts):
        each.close()
    foreign = [asked for each in visits for asked in each.asked if not asked.startswith((url, "data:", "blob:"))]
    assert not foreign
    assert not [error for each in visits for error in each.errors]


def image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=int)


def test_a_digit_appears_while_it_is_drawn(visit: Visitors, tmp_path: Path) -> None:
    here = visit()
    here.settings(ar_steps="16")
    here.page.wait_for_function("document.querySelectorAll('#plot rect').length === 16")
    here.page.evaluate("""() => {
        window.seen = new Set();
        const drawn = "#draw-stage .pictures:not(.ahead) img", ahead = "#draw-stage .pictures.ahead img";
        window.foreseen = new Set();
        const look = () => {
            document.querySelectorAll(drawn).forEach(img => window.seen.add(img.src));
            document.querySelectorAll(ahead).forEach(img => window.foreseen.add(img.src));
        };
        new MutationObserver(look).observe(document.getElementById("draw-stage"),
                                           {childList: true, subtree: true, attributes: true});
    }""")
    [drawn] = here.draw()
    assert here.page.evaluate("window.seen.size") >= 5
    assert here.page.evaluate("window.foreseen.size") >= 5
    Sampler.from_pretrained("mar-digits", device="cpu").sample_into(
        tmp_path, Inputs.paired(0, 3), steps="linear:3-1", num_ar_steps=16
    )
    [file] = (tmp_path / "samples").iterdir()
    assert image(drawn).tolist() == image(file.read_bytes()).tolist()
    assert "evaluations" in here.page.inner_text("#draw-stage aside")
    assert "1 picture in" in here.said("draw")


def test_two_settings_are_compared_with_the_original(visit: Visitors) -> None:
    here = visit()
    here.settings(labels="3,5")
    here.tab("Compare")
    for i, text in enumerate(("linear:3-1", "constant:2 solver=ddim", "")):
        here.fill(f"setting-{i + 1}", text)
    here.page.click("#compare-start")
    here.wait("#compare-stage .apart", "attached")
    cards = here.page.locator("#compare-stage .card")
    assert cards.count() == 3
    assert cards.nth(0).inner_text().startswith("constant:100")
    assert "times as fast" in cards.nth(1).inner_text()
    apart = cards.nth(1).locator(".apart").first
    assert not apart.is_visible()
    here.page.locator("#look").get_by_text("difference").click()
    apart.wait_for(state="visible")
    first = cards.nth(1).locator(".first").first
    here.page.locator("#look").get_by_text("flicker").click()
    first.wait_for(state="visible")
    assert first.evaluate("e => getComputedStyle(e).animationName") == "flicker"


def test_what_is_not_painted_over_stays(visit: Visitors) -> None:
    here = visit()
    here.settings()
    [before] = here.draw()
    here.fill("seeds", "8")
    here.tab("Edit")
    here.page.click("#edit-take")
    here.wait("#edit-opened p")
    canvas = here.page.locator("#easel canvas").first
    canvas.wait_for()
    time.sleep(1)  # the editor moves the picture to its place
    # The picture is a square in the middle; the left third of it is painted over.
    box = canvas.bounding_box()
    side = min(box["width"], box["height"]) * 0.8
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    here.page.mouse.move(left + side / 6, top + 5)
    here.page.mouse.down()
    for place in range(1, 4):
        here.page.mouse.move(left + side / 6, top + side * place / 3)
    here.page.mouse.up()
    [after] = here.draw("edit")
    assert "tokens drawn again" in here.said("edit")
    apart = np.abs(image(after) - image(before))
    # The autoencoder's normalisation sees all of the picture: what is kept may differ by a shade.
    assert apart[:, 20:].max() <= 5
    assert apart[:, :12].max() > 20


def test_a_dropped_picture_restores_its_settings(visit: Visitors) -> None:
    here = visit()
    here.settings(steps="cosine:4-1", labels="7", seeds="123")
    [drawn] = here.draw()
    here.settings(steps="constant:9", labels="1", seeds="0", ar_steps="5")
    dropped = {"bytes": list(drawn), "name": "picture.png"}
    transfer = here.page.evaluate_handle(
        """file => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(file.bytes)], file.name, {type: "image/png"}));
            return transfer;
        }""",
        dropped,
    )
    here.page.dispatch_event("#draw-stage", "drop", {"dataTransfer": transfer})
    assert here.wait("#restored p").inner_text() == "Restored: these settings draw this very picture."
    assert [here.value(name) for name in ("steps", "labels", "seeds", "ar")] == ["cosine:4-1", "7", "123", "4"]
    assert here.draw() == [drawn]


def test_cancelling_is_told(visit: Visitors) -> None:
    here = visit()
    here.settings(steps="constant:500", ar_steps="32")
    here.page.click("#draw-start")
    here.wait("#draw-stage img")
    here.page.click("#draw-cancel")
    here.page.wait_for_function("document.querySelector('#draw-said').innerText.includes('Cancelled after')")
    assert "of 32 AR steps" in here.said("draw")
    assert here.page.is_enabled("#draw-start")
    assert not here.page.is_enabled("#draw-cancel")


def test_what_is_wrong_is_told_in_a_sentence(visit: Visitors) -> None:
    here = visit()
    here.settings(labels="three")
    assert here.draw() == []
    assert here.said("draw") == "labels must be whole numbers like 3, 0-7 or 1,5,9; found 'three'."
    assert here.page.get_attribute("#draw-said p", "role") == "alert"
    here.page.set_input_files("#fields input[type=file]", {"name": "a.png", "mimeType": "", "buffer": b"no picture"})
    assert "does not say what it was drawn from" in here.wait("#restored p").inner_text()


def test_a_model_of_prompts_asks_for_words(visit: Visitors) -> None:
    pytest.importorskip("transformers")
    here = visit()
    here.page.click("#model input")
    here.page.get_by_role("option", name="harmon-shapes").click()
    here.wait("#prompts textarea")
    here.page.wait_for_function("document.querySelector('.state').innerText.includes('harmon-shapes')")
    assert not here.page.is_visible("#labels")
    here.fill("prompts", "  ")
    assert here.draw() == []
    assert here.said("draw") == "a prompt is empty: expected words."


def test_two_browsers_get_their_own_pictures(visit: Visitors) -> None:
    one, other = visit(), visit(viewport=DESKTOP)
    one.settings(labels="4", seeds="1", ar_steps="8")
    other.settings(labels="9", seeds="2", ar_steps="8")
    alone = [*one.draw(), *other.draw()]
    for each in (one, other):
        each.page.evaluate("document.querySelectorAll('button.save').forEach(e => e.remove())")
        each.page.click("#draw-start")
    for each in (one, other):
        each.wait("#draw-stage button.save")
    assert [*one.contents("#draw-stage img"), *other.contents("#draw-stage img")] == alone
    one.tab("Gallery")
    assert one.contents("#gallery img") == [alone[0], alone[0]]


def test_pictures_are_saved_with_their_settings(visit: Visitors) -> None:
    here = visit()
    here.settings(labels="3,5")
    drawn = here.draw()
    with here.page.expect_download() as download:
        here.page.locator("#draw-stage button.save").first.click()
    assert download.value.suggested_filename == "seed000000_label0003.png"
    assert Path(download.value.path()).read_bytes() == drawn[0]
    here.tab("Gallery")
    with here.page.expect_download() as download:
        here.page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as file:
        assert [file.read(name) for name in file.namelist()] == drawn
    about = json.loads(getattr(Image.open(io.BytesIO(drawn[1])), "text", {})[TEXT])
    assert (about["label"], about["seed"], about["settings"]["steps"]) == (5, 0, "linear:3-1")


def test_the_keyboard_is_enough(visit: Visitors) -> None:
    here = visit()
    here.settings()
    here.page.locator("#labels input, #labels textarea").focus()
    reached = list[str]()
    for _ in range(40):
        here.page.keyboard.press("Tab")
        reached.append(here.page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        if reached[-1] == "draw-start":
            break
    assert {"Draw", "restore"} <= set(reached)
    here.page.keyboard.press("Enter")
    here.wait("#draw-stage button.save")


def test_who_leaves_while_sending_is_no_fault(url: str) -> None:
    """The studio says nothing of it, as `url` holds."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=cut\r\n\r\n"
        '--cut\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhalf'
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode())
        time.sleep(0.5)  # until it is read


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything(visit: Visitors, scheme: str) -> None:
    here = visit(viewport=PHONE, color_scheme=scheme)
    assert here.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for name in ("Draw", "Compare", "Edit", "Why", "Gallery"):
        here.tab(name)
        assert here.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    dark = here.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark.strip("rgba()").split(",")[:3])) < 200) == (scheme == "dark")
