"""The page in Chromium: mouse, keyboard, clipboard, phone."""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mbconv.runtime.predictor import Predictor
from server import Server, png

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = api.expect
expect.set_options(timeout=30_000)

ADD = """([how, name, content]) => {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: "image/png"}));
    const event = how === "drop"
        ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
        : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
    document.body.dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        sandbox = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
        try:
            browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        except api.Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        yield browser
        browser.close()


@pytest.fixture(params=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, small_server: Server) -> Iterator[Any]:
    """The page; at the end nothing has failed in it and nothing came from elsewhere."""
    phone = request.param == "phone"
    width = 390 if phone else 1280
    context = browser.new_context(
        viewport={"width": width, "height": 800}, has_touch=phone, is_mobile=phone
    )
    page, troubles, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda m: troubles.append(m.text) if "policy" in m.text.lower() else None)
    page.on("request", lambda r: asked.append(r.url))
    page.goto(small_server.url)
    yield page
    fits = page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
    assert troubles == []
    assert all(url.startswith((small_server.url, "blob:")) for url in asked), asked
    assert fits


def add(page: Any, how: str, name: str, content: bytes) -> None:
    page.evaluate(ADD, [how, name, base64.b64encode(content).decode()])


def test_a_picture_gets_labels_and_a_heat_map(page: Any, small_model: Path) -> None:
    content = png(1)
    (expected,) = Predictor(small_model).predict([content])
    add(page, "drop", "first.png", content)
    card = page.locator(".card")
    rows = card.locator(".row")
    expect(rows).to_have_count(4)
    assert rows.first.inner_text().split() == [expected.labels[0], f"{expected.scores[0]:.1%}"]
    heat = card.locator(".heat img")
    expect(heat).to_be_visible()
    expect(heat).to_have_attribute("alt", f"Places that spoke for {expected.labels[0]}")
    expect(card.locator(".time")).to_contain_text("ms at the server")
    before = heat.get_attribute("src")
    rows.first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(rows.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(heat).to_have_attribute("alt", f"Places that spoke for {expected.labels[1]}")
    assert heat.get_attribute("src") != before
    assert heat.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32
    expect(page.get_by_role("status")).to_contain_text("first.png: ")


@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_several_pictures_and_a_broken_one(page: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(png(n)[: 2000 if n == 2 else None])
    page.set_input_files("#files", paths)
    expect(page.locator(".problem")).to_have_text("2.png cannot be read: cut off before its end.")
    expect(page.locator("#compare th[scope=col]")).to_have_count(2)
    add(page, "paste", "pasted.png", png(7))
    expect(page.locator("#compare th[scope=col]")).to_have_count(3)
    expect(page.locator("#compare td.best")).to_have_count(3)
    page.get_by_role("button", name="Remove 0.png").click()
    expect(page.locator("#compare th[scope=col]")).to_have_count(2)
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#compare")).to_be_hidden()


def test_a_camera_is_offered_where_there_is_one(page: Any) -> None:
    button = page.get_by_role("button", name="Take a photograph")
    assert button.is_visible() == (page.viewport_size["width"] == 390)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose pictures").click()
    assert chooser.value.is_multiple()


@pytest.mark.parametrize("page", ["wide"], indirect=True)
def test_a_file_that_is_too_large_is_not_sent(page: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(16_000_001)
    page.set_input_files("#files", large)
    expect(page.locator(".problem")).to_have_text(
        "large.png is larger than 16 MB; choose a smaller file."
    )
