"""The page in a real Chromium."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import Archives

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here: install the system's package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=chromium, args=FLAGS, has_touch=True,
            viewport={"width": 1200, "height": 760},
        )  # fmt: skip
        context.set_default_timeout(WAIT_MS)
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext, address: str) -> Iterator[Page]:
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or faults.append(request.url)
    )
    page.goto(address)
    page.locator("#images button", has_text=re.compile(r"^plain.*first", re.DOTALL)).click()
    wait_for(page, "document.getElementById('title').textContent === 'plain' && location.hash.includes('at=')")
    yield page
    page.close()
    assert not faults, faults


def wait_for(page: Page, condition: str) -> None:
    # Not wait_for_function: it evaluates text in the page, which the page's own policy forbids.
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(100)


def place(page: Page) -> tuple[float, float, float]:
    """Centre and scale as the address has them, once it stands still."""
    previous = ""
    while page.url != previous:
        previous = page.url
        page.wait_for_timeout(400)
    found = re.search(r"at=([-\d.]+),([-\d.]+),([-\d.e]+)", page.url)
    assert found, page.url
    x, y, scale = map(float, found.groups())
    return x, y, scale


def middle(page: Page) -> tuple[float, float]:
    box = page.locator("#stage-a").bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_drag_wheel_and_keys_move_and_the_address_brings_back(page: Page, address: str) -> None:
    x, y, scale = place(page)
    assert (x, y) == pytest.approx((550, 350), abs=1)
    at = middle(page)
    page.mouse.move(*at)
    page.mouse.wheel(0, -400)
    nearer = place(page)
    assert nearer[2] > scale * 1.1
    page.mouse.down()
    page.mouse.move(at[0] - 90, at[1] - 40, steps=8)
    page.wait_for_timeout(300)
    page.mouse.up()
    moved = place(page)
    assert moved[0] > nearer[0] + 5 and moved[2] == pytest.approx(nearer[2], rel=0.01)
    page.keyboard.press("+")
    assert place(page)[2] > moved[2] * 1.3
    page.evaluate("document.querySelector('[data-class]').click()")
    seen = place(page)
    address_now = page.url
    assert "hide=1" in address_now
    page.goto("about:blank")
    page.goto(address_now)
    wait_for(page, "document.querySelector('[data-class]')")
    assert place(page) == pytest.approx(seen, rel=0.01)
    assert not page.locator("[data-class]").is_checked()
    page.keyboard.press("0")
    assert place(page)[2] == pytest.approx(scale, rel=0.02)


def test_layers_change_what_is_seen(page: Page) -> None:
    place(page)
    stage = page.locator("#stage-a canvas").first
    plain = stage.screenshot()
    page.locator("[data-class]").uncheck()
    page.wait_for_timeout(1500)
    hidden = stage.screenshot()
    assert hidden != plain
    page.select_option("#map", "probabilities.1")
    page.get_by_label("Opacity of the map").wait_for()
    page.wait_for_timeout(1500)
    assert stage.screenshot() not in (plain, hidden) and "map=probabilities.1" in page.url
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.keyboard.press("t")


def test_a_click_on_an_object_shows_its_measurements(page: Page) -> None:
    x, y, scale = place(page)
    at = middle(page)
    page.mouse.click(at[0] + (700 - x) * scale, at[1] + (150 - y) * scale)
    page.locator("#selection").get_by_text("20,000").first.wait_for()
    assert page.locator("svg path.chosen").count() == 1
    assert "700" in (page.locator("#position").text_content() or "")
    page.keyboard.press("Escape")
    page.locator("#selection-section").wait_for(state="hidden")


def test_two_results_move_together_and_swipe(page: Page) -> None:
    place(page)
    page.select_option("#with", index=1)
    page.locator("#stage-b canvas").first.wait_for()
    page.keyboard.press("+")
    place(page)
    read = "id => document.querySelector(id + ' > svg > g').getAttribute('transform').match(/[-\\d.]+/g).map(Number)"
    assert page.evaluate(read, "#stage-a") == pytest.approx(page.evaluate(read, "#stage-b"), abs=1.5)
    page.click("[data-mode=swipe]")
    page.locator("#stage-b").wait_for(state="hidden")
    page.wait_for_timeout(1000)
    middle_split = page.locator("#stage-a").screenshot()
    page.evaluate("const s = document.getElementById('swipe'); s.value = 0.95; s.dispatchEvent(new Event('input'))")
    page.wait_for_timeout(1000)
    assert page.locator("#stage-a").screenshot() != middle_split and "mode=swipe" in page.url


def test_a_region_is_drawn_noted_and_stored(page: Page, archives: Archives) -> None:
    from unetpp_workflows.viewer import review
    from unetpp_workflows.viewer.catalogue import Catalogue

    x, y, scale = place(page)
    at = middle(page)
    page.keyboard.press("d")
    corners = [(100, 400), (180, 400), (180, 460), (100, 460)]
    points = [(at[0] + (px - x) * scale, at[1] + (py - y) * scale) for px, py in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()
    page.fill("#draft-note", "<b>missed</b>")
    page.select_option("#draft-label", "paper")
    page.click("#draft-save")
    row = page.locator(".region-row")
    row.get_by_text("<b>missed</b>").wait_for()
    page.locator("[data-verdict=accepted]").click()
    page.locator("#images .accepted").first.wait_for()
    result = next(r for r in Catalogue([archives.first]).results() if r.name == "plain")
    region, image = review.current(result)
    assert image["verdict"] == "accepted" and region["label"] == "paper" and region["note"] == "<b>missed</b>"
    xs, ys = zip(*region["region"], strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((100, 180, 400, 460), abs=3)
    row.get_by_title("Withdraw").click()
    row.wait_for(state="detached")
    (archives.first / review.LOG).unlink()


def test_a_hostile_name_is_only_text(page: Page) -> None:
    page.locator("#images button", has_text="onerror").click()
    wait_for(page, "document.getElementById('title').textContent.startsWith('<img')")
    assert page.locator("img[src=x]").count() == 0 and page.title() != "1"


def test_a_small_touch_screen_keeps_the_picture_first(browser: BrowserContext, address: str, tmp_path: Path) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": 420, "height": 800})
    page.goto(address)
    page.locator("#stage-a canvas").first.wait_for()
    assert not page.locator("#panel").is_visible() and not page.locator("#list").is_visible()
    page.tap("#toggle-panel")
    assert page.locator("#panel").is_visible()
    page.close()
