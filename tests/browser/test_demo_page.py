"""The demo page in a real browser: drop an image, mask it with slider and brush, and see the reconstruction."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae.demo.config import DemoConfig
from mae.demo.server import DemoServer
from mae.demo.session import DemoSession
from tests.browser.chromium import CONTRASTS, Chromium, find_chromium
from tests.unit.checkpoints.small_builtin import write_builtin

BROWSER = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium found: install one, or name it in CHROMIUM"),
]
DROP = """(() => {{
    const bytes = Uint8Array.from(atob('{content}'), one => one.charCodeAt(0));
    const carried = new DataTransfer();
    carried.items.add(new File([bytes], 'photo.png'));
    document.getElementById('drop').dispatchEvent(
        new DragEvent('drop', {{dataTransfer: carried, bubbles: true, cancelable: true}}));
}})()"""
PSNR = "document.getElementById('psnr').textContent"
SHARE = "document.getElementById('share').textContent"
RESULT = "document.getElementById('result').src"
MESSAGE = "document.getElementById('message').textContent"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    stream = np.random.default_rng(0)
    for number in range(4):
        pixels = stream.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        name = f"{number}.png" if number else "a_long_name_" * 12 + ".png"
        Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def address(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    weights = tmp_path_factory.mktemp("weights")
    write_builtin(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAECLI_BUILTIN", str(weights))
        session = DemoSession(DemoConfig(data=photos, checkpoint=Path("builtin"), device="cpu"))
    with DemoServer(0) as server:
        server.session = session
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    assert BROWSER is not None
    with Chromium(BROWSER, tmp_path / "profile") as browser:
        yield browser


def until(browser: Chromium, expression: str, wanted: Any = True) -> None:
    deadline = time.monotonic() + 30
    while (found := browser.evaluate(expression)) != wanted:
        assert time.monotonic() < deadline, f"{expression} is {found!r} and not {wanted!r}"
        time.sleep(0.05)


def drop(browser: Chromium, content: bytes) -> None:
    browser.evaluate(DROP.format(content=base64.b64encode(content).decode()))


def pressed(browser: Chromium, kind: str, x: float, y: float) -> None:
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def test_drop_slide_and_brush(browser: Chromium, address: str, photos: Path) -> None:
    browser.show(width=1200)
    browser.open(address)
    drop(browser, (photos / "2.png").read_bytes())
    until(browser, f"{PSNR}.startsWith('PSNR ')")
    assert browser.evaluate(SHARE) == "80 %"  # 12 of 3 x 5 patches
    until(browser, "document.querySelectorAll('#similar figure').length", 4)
    assert browser.evaluate("document.querySelector('#similar figcaption').textContent") == "2.png 1.00"

    before = browser.evaluate(RESULT)
    browser.evaluate(
        "{ const one = document.getElementById('ratio'); one.value = 0.4; one.dispatchEvent(new Event('input')); }"
    )
    assert browser.evaluate(SHARE) == "40 %"
    until(browser, f"{RESULT} !== {before!r}")

    left, top, width, height = browser.evaluate(
        "(() => { const box = document.getElementById('canvas').getBoundingClientRect(); "
        "return [box.left, box.top, box.width, box.height]; })()"
    )
    browser.evaluate("document.getElementById('show').click()")
    before = browser.evaluate(RESULT)
    for row in range(3):  # over every patch, with the brush that makes patches visible
        pressed(browser, "mousePressed", left + 1, top + (row + 0.5) * height / 3)
        for column in range(5):
            pressed(browser, "mouseMoved", left + (column + 0.5) * width / 5, top + (row + 0.5) * height / 3)
        browser.call(
            "Input.dispatchMouseEvent", type="mouseReleased", x=left + 1, y=top + 1, button="left", clickCount=1
        )
    until(browser, SHARE, "0 %")
    until(browser, PSNR, "")
    browser.evaluate("document.getElementById('mask').click()")
    pressed(browser, "mousePressed", left + width / 2, top + height / 2)
    until(browser, SHARE, "7 %")  # one of 15
    until(browser, f"{PSNR}.startsWith('PSNR ')")
    pressed(browser, "mouseReleased", left + width / 2, top + height / 2)

    assert browser.complaints == []
    assert all(url.startswith((address, "data:")) for url in browser.requests)


def test_the_brush_has_keys(browser: Chromium, address: str, photos: Path) -> None:
    browser.open(address)
    drop(browser, (photos / "2.png").read_bytes())
    until(browser, SHARE, "80 %")  # 12 of 3 x 5 patches
    browser.evaluate("document.getElementById('show').click()")
    browser.evaluate("state.masked = new Set([0, 6, 14]); update()")
    browser.evaluate("document.getElementById('canvas').focus()")
    framed = "document.getElementById('canvas').toDataURL()"
    before = browser.evaluate(framed)
    for key, masked in ((" ", 2), ("ArrowRight", 2), (" ", 2), ("ArrowDown", 2), (" ", 1), ("ArrowUp", 1)):
        type_key(browser, key)
        assert browser.evaluate("state.masked.size") == masked
    for key in ("ArrowLeft", "ArrowLeft"):  # from the second patch to the first, and to the last
        type_key(browser, key)
    assert browser.evaluate(framed) != before
    type_key(browser, " ")
    until(browser, SHARE, "0 %")
    framed_last = browser.evaluate(framed)
    browser.evaluate("document.getElementById('canvas').blur()")
    assert browser.evaluate(framed) != framed_last
    assert browser.complaints == []


def type_key(browser: Chromium, key: str) -> None:
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def test_another_mask_without_a_server_is_told(browser: Chromium, address: str, photos: Path) -> None:
    browser.open(address)
    drop(browser, (photos / "2.png").read_bytes())
    until(browser, f"{PSNR}.startsWith('PSNR ')")
    browser.evaluate("window.fetch = () => Promise.reject(new Error('nobody answers'))")
    browser.evaluate("document.getElementById('again').click()")
    until(browser, MESSAGE, "nobody answers")
    assert browser.complaints == []


def test_a_file_that_is_no_image_is_said_and_the_next_one_works(browser: Chromium, address: str, photos: Path) -> None:
    browser.open(address)
    drop(browser, b"no image at all")
    until(browser, f"{MESSAGE} !== ''")
    assert "the image" in browser.evaluate(MESSAGE)
    assert browser.evaluate("document.getElementById('work').hidden") is True
    drop(browser, (photos / "3.png").read_bytes())
    until(browser, f"{PSNR}.startsWith('PSNR ')")
    assert browser.evaluate(MESSAGE) == ""


@pytest.mark.parametrize(("width", "dark"), [(320, False), (1200, True)])
def test_it_fits_and_text_stands_out(browser: Chromium, address: str, photos: Path, width: int, dark: bool) -> None:
    browser.show(width=width, dark=dark)
    browser.open(address)
    drop(browser, (photos / "1.png").read_bytes())
    until(browser, "document.querySelectorAll('#similar figure').length", 4)
    until(browser, f"{PSNR}.startsWith('PSNR ')")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.querySelectorAll('#similar figure')].every(one => one.offsetWidth == 128)")
    browser.evaluate("document.body.style.background = 'Canvas'")  # what is behind the page anyway, by name
    browser.evaluate("say('an error')")
    assert browser.evaluate(CONTRASTS) >= 4.5
