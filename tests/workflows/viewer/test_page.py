"""The page in a real Chromium."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unetpp.geometry import Box

from .conftest import INK_AT, PAPER_AT, SMUDGE_AT, Archives, served

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

WAIT_MS = 20_000


@pytest.fixture
def page(browser: BrowserContext, address: str) -> Iterator[Page]:
    with opened(browser, address) as page:
        page.locator("#images button", has_text=re.compile(r"^plain.*first", re.DOTALL)).click()
        wait_for(page, "document.getElementById('title').textContent === 'plain' && location.hash.includes('at=')")
        yield page


@pytest.fixture
def doubtful(browser: BrowserContext, doubts_address: str) -> Iterator[Page]:
    """The picture b of `doubts`, without labels and outlines."""
    with opened(browser, doubts_address) as page:
        page.locator("#images button[title=b]").click()
        wait_for(page, "document.getElementById('title').textContent === 'b' && location.hash.includes('at=')")
        page.locator("[data-class='1']").uncheck()
        page.locator("#outlines").uncheck()
        yield page


@contextmanager
def opened(browser: BrowserContext, address: str) -> Iterator[Page]:
    """A page that must not fail or ask anything of another address."""
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or faults.append(request.url)
    )
    page.goto(address)
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
    wait_for(page, "location.hash.includes('hide=1')")  # the address follows when the view has come to rest
    seen = place(page)
    address_now = page.url
    page.goto("about:blank")
    page.goto(address_now)
    wait_for(page, "document.querySelector('[data-class]')")
    assert place(page) == pytest.approx(seen, rel=0.01)
    assert not page.locator("[data-class]").is_checked()
    page.keyboard.press("0")
    assert place(page)[2] == pytest.approx(scale, rel=0.02)


def test_an_image_opens_as_a_whole_though_the_one_before_still_moves(page: Page) -> None:
    whole = place(page)
    other = page.locator("#images button", has_text="onerror")
    held: list[Route] = []
    page.route(
        f"**/api/images/{other.get_attribute('data-id')}",
        lambda r: held.append(r) if r.request.method == "GET" else r.continue_(),
    )
    other.click()
    at = middle(page)
    page.mouse.move(at[0] + 100, at[1])
    page.mouse.wheel(0, -600)
    page.wait_for_timeout(800)
    for route in held:
        route.continue_()
    wait_for(page, "document.getElementById('title').textContent.startsWith('<img')")
    assert held and place(page) == pytest.approx(whole, rel=0.01)


def test_an_image_that_does_not_open_leaves_the_one_before_and_its_place(page: Page) -> None:
    place(page)
    before = page.url.split("id=")[1][:16]
    other = page.locator("#images button", has_text="onerror")
    page.route(f"**/api/images/{other.get_attribute('data-id')}", lambda route: route.abort())
    other.click()
    page.get_by_text("Not opened").wait_for()
    page.keyboard.press("+")
    near = place(page)
    assert before in page.url and page.locator("#title").text_content() == "plain"
    page.keyboard.press("ArrowRight")
    assert place(page)[0] > near[0] + 5


def test_keys_do_what_the_help_says_wherever_the_focus_is(page: Page) -> None:
    drawn = "document.querySelector('#stage-a > svg > g').getAttribute('transform')"
    place(page)
    corner = page.locator("#stage-a").bounding_box()
    assert corner
    page.mouse.click(corner["x"] + 30, corner["y"] + 30)  # on the picture, where no object is
    seen, outlines = page.locator("#stage-a canvas").first.screenshot(), page.evaluate(drawn)
    page.keyboard.press("f")
    page.wait_for_timeout(700)
    assert page.locator("#stage-a canvas").first.screenshot() == seen and page.evaluate(drawn) == outlines
    page.keyboard.press("?")
    page.keyboard.press("o")  # read there, not meant
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible() and page.locator("#outlines").is_checked()
    page.get_by_label("Opacity of labels").focus()
    page.keyboard.press("o")
    assert not page.locator("#outlines").is_checked()
    page.fill("#image-note", "")
    page.keyboard.type("o")
    assert page.input_value("#image-note") == "o" and not page.locator("#outlines").is_checked()


def test_keys_take_the_list_along(page: Page) -> None:
    page.set_viewport_size({"width": 1200, "height": 240})
    chosen = page.locator("#images [aria-current=true]")
    for key in "kkkjjj":
        page.keyboard.press(key)
        place(page)
        inside, around = chosen.bounding_box(), page.locator("#images").bounding_box()
        assert inside and around
        # Heights of entries are guessed until they are drawn.
        assert around["y"] - 5 <= inside["y"] <= around["y"] + around["height"] - inside["height"] + 5
    page.set_viewport_size({"width": 1200, "height": 760})


def test_a_long_name_of_a_class_leaves_the_figures_in_sight(page: Page) -> None:
    name = "lymphocytes_and_plasma_cells_in_the_stroma"

    def renamed(route: Route) -> None:
        text = route.fetch().text().replace('"name":"ink"', f'"name":"{name}"')
        route.fulfill(body=text, content_type="application/json")

    page.route("**/api/images/*", renamed)
    page.reload()
    page.locator("#figures").get_by_text(name).wait_for()
    assert page.evaluate("(p => p.scrollWidth - p.clientWidth)(document.getElementById('panel'))") == 0


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


def colour(page: Page, at: tuple[int, int], until: Callable[[NDArray[np.float64]], bool]) -> NDArray[np.float64]:
    """Return what is seen at a place of the image once it fulfils `until`, or what it was when the time was over."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        x, y, scale = place(page)
        shot = np.asarray(Image.open(io.BytesIO(page.locator("#stage-a").screenshot())).convert("RGB"), np.float64)
        row, column = shot.shape[0] / 2 + (at[1] - y) * scale, shot.shape[1] / 2 + (at[0] - x) * scale
        seen: NDArray[np.float64] = shot[int(row) - 3 : int(row) + 3, int(column) - 3 : int(column) + 3].mean((0, 1))
        if until(seen) or time.monotonic() > deadline:
            return seen


def is_near(expected: Sequence[float]) -> Callable[[NDArray[np.float64]], bool]:
    return lambda seen: bool(np.abs(seen - expected).max() <= 8)  # JPEG and rounding


def slide(page: Page, label: str, value: float) -> None:
    page.get_by_label(label).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", str(value)
    )


def stored(output: Path, kind: str, at: tuple[int, int]) -> int:
    """The byte of class 1 (or of the only plane) of a map of picture b."""
    from unetpp.job import SegmentJob

    job = SegmentJob.load(output / "b")
    assert job is not None
    (store,) = (store for store in job.map_stores if store.name.startswith(kind))
    x, y = at
    return int(store.read(Box(y, x, y + 1, x + 1))[-1, 0, 0])


def test_a_class_shows_in_its_colour_until_it_is_switched_off(doubtful: Page) -> None:
    source, ink = np.full(3, 20.0), np.array([200.0, 30.0, 60.0])
    assert is_near(source)(colour(doubtful, INK_AT, is_near(source)))
    doubtful.locator("[data-class='1']").check()
    for opacity in (1.0, 0.3, 0.0):
        slide(doubtful, "Opacity of labels", opacity)
        mixed = list(source + opacity * (ink - source))
        assert colour(doubtful, INK_AT, is_near(mixed)) == pytest.approx(mixed, abs=8)
        assert colour(doubtful, PAPER_AT, is_near([220] * 3)) == pytest.approx([220] * 3, abs=8)


def test_the_probability_is_seen_as_it_is_stored(doubtful: Page, doubts: Path) -> None:
    doubtful.select_option("#map", "probabilities.1")
    slide(doubtful, "Opacity of the map", 1.0)
    for at, source in ((INK_AT, 20.0), (SMUDGE_AT, 90.0), (PAPER_AT, 220.0)):
        share = stored(doubts, "probabilities", at) / 254
        mixed = list(source + share * (np.array([200.0, 30.0, 60.0]) - source))
        assert colour(doubtful, at, is_near(mixed)) == pytest.approx(mixed, abs=8), at
    slide(doubtful, "Opacity of the map", 0.0)
    assert colour(doubtful, SMUDGE_AT, is_near([90] * 3)) == pytest.approx([90] * 3, abs=8)


def test_uncertainty_shines_where_the_heads_differ_only(doubtful: Page, doubts: Path) -> None:
    assert stored(doubts, "uncertainty", SMUDGE_AT) > 20 > stored(doubts, "uncertainty", PAPER_AT)
    doubtful.select_option("#map", "uncertainty")
    slide(doubtful, "Opacity of the map", 1.0)
    seen = colour(doubtful, SMUDGE_AT, lambda seen: not is_near([90] * 3)(seen))
    assert np.abs(seen - 90).max() > 30
    assert "map=uncertainty" in doubtful.url
    doubtful.select_option("#map", "")
    assert colour(doubtful, SMUDGE_AT, is_near([90] * 3)) == pytest.approx([90] * 3, abs=8)


def test_images_are_sorted_by_what_is_in_them(doubtful: Page) -> None:
    def order() -> str:
        return "".join(name or "" for name in doubtful.locator("#images .name").all_text_contents())

    assert order() == "abc"
    doubtful.select_option("#sort", "area")
    assert order() == "acb"
    doubtful.select_option("#sort", "uncertainty")
    assert order() == "bca"


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


def draw(page: Page, first: tuple[float, float], last: tuple[float, float]) -> None:
    """Draw a region around the box between two corners, in pixels of the image."""
    x, y, scale = place(page)
    at = middle(page)
    page.keyboard.press("d")
    (x0, y0), (x1, y1) = first, last
    points = [
        (at[0] + (px - x) * scale, at[1] + (py - y) * scale) for px, py in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()
    page.locator("#draft").wait_for()


def test_a_region_is_drawn_noted_and_stored(page: Page, archives: Archives) -> None:
    from unetpp_workflows.viewer import review
    from unetpp_workflows.viewer.catalogue import Catalogue

    draw(page, (100, 400), (180, 460))
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


def test_another_output_at_the_same_address_is_not_the_one_seen_before(
    browser: BrowserContext, archives: Archives, page_built: None
) -> None:
    grey_block = (140, 430)  # ink to the first network, paper to the second
    seen, port = [], 0
    for output, is_ink in ((archives.first, True), (archives.second, False)):
        with served([output], port) as address, opened(browser, address) as page:
            port = int(address.rstrip("/").rpartition(":")[2])
            page.locator("#images button[title=plain]").click()
            page.locator("#outlines").uncheck()
            slide(page, "Opacity of labels", 1.0)
            expected = [200, 30, 60] if is_ink else [90] * 3
            seen.append(is_near(expected)(colour(page, grey_block, is_near(expected))))
    assert seen == [True, True]


def test_labels_that_were_made_anew_are_told_and_no_verdict_is_stored_on_them(
    browser: BrowserContext, archives: Archives, ink_variant: Callable[..., Path], tmp_path: Path, page_built: None
) -> None:
    from unetpp_workflows.pipeline import segment
    from unetpp_workflows.viewer import review
    from unetpp_workflows.viewer.catalogue import Catalogue

    output = tmp_path / "out"
    shutil.copytree(archives.second, output, ignore=shutil.ignore_patterns(review.LOG))
    brighter = ink_variant(tmp_path / "brighter", threshold=120, name="brighter")
    with served([output]) as address, opened(browser, address) as page:
        place(page)
        draw(page, (100, 400), (180, 460))
        page.fill("#draft-note", "missed")
        page.fill("#image-note", "sharp")
        thumbnail = page.locator("#images img").first.get_attribute("src")
        source = str(archives.first.parent / "in" / "plain.png")
        assert segment([source], model=str(brighter), output=output).exit_code == 0
        for button in ("[data-verdict=accepted]", "#draft-save"):
            page.evaluate("document.getElementById('message').textContent = ''")
            page.click(button)
            page.get_by_text("Not stored: plain was segmented anew").wait_for()
        assert page.input_value("#draft-note") == "missed" and page.input_value("#image-note") == "sharp"
        assert not (output / review.LOG).exists()
        page.locator("[data-class='1']").uncheck()  # other tiles than those there
        page.get_by_text("Parts of the picture were not loaded: plain was segmented anew").wait_for()
        page.locator("#images button[title=plain]").click()
        page.locator("#model", has_text="brighter").wait_for()
        page.click("#draft-save")
        page.locator(".region-row").get_by_text("missed").wait_for()
        wait_for(page, f"document.querySelector('#images img').getAttribute('src') !== '{thumbnail}'")
        page.click("[data-verdict=rejected]")
        page.locator("#images .rejected").wait_for()
        (result,) = Catalogue([output]).results()
        assert review.verdicts([result]) == {result.id: "rejected"}


def test_what_is_not_stored_yet_waits_for_its_image_to_be_opened_again(page: Page, archives: Archives) -> None:
    from unetpp_workflows.viewer import review
    from unetpp_workflows.viewer.catalogue import Catalogue

    def away_and_back() -> None:
        page.keyboard.press("k")
        page.locator("#model", has_text="darker").wait_for()
        page.locator("#image-note").wait_for()
        assert page.input_value("#image-note") == "" and page.locator("#draft, path.draft").count() == 0
        page.keyboard.press("j")
        page.locator("#model", has_text="ink").wait_for()
        page.locator("#draft").wait_for()

    draw(page, (100, 400), (180, 460))
    page.select_option("#draft-label", "paper")
    page.fill("#image-note", "sharp")
    page.fill("#draft-note", "missed")
    page.keyboard.press("Escape")  # out of the note, where j and k are letters
    away_and_back()
    assert page.input_value("#image-note") == "sharp" and page.input_value("#draft-note") == "missed"
    assert page.input_value("#draft-label") == "paper" and page.locator("path.draft").count() == 1
    page.select_option("#draft-verdict", "accepted")
    away_and_back()
    assert page.input_value("#draft-verdict") == "accepted" and not page.locator("#draft-label").is_visible()
    draw(page, (200, 400), (280, 460))  # anew, with the same note
    page.click("#draft-save")
    page.locator(".region-row").get_by_text("missed").wait_for()
    assert page.locator("#draft, path.draft").count() == 0 and page.input_value("#image-note") == "sharp"
    result = next(r for r in Catalogue([archives.first]).results() if r.name == "plain")
    (said,) = review.current(result)
    assert (said["verdict"], said["label"], said["note"]) == ("accepted", None, "missed")
    assert min(x for x, _ in said["region"]) == pytest.approx(200, abs=3)
    (archives.first / review.LOG).unlink()


def test_a_region_is_stored_once_however_often_it_is_saved(page: Page, archives: Archives) -> None:
    from unetpp_workflows.viewer import review

    held: list[Route] = []
    page.route("**/reviews?*", lambda r: held.append(r) if r.request.method == "POST" else r.continue_())
    draw(page, (100, 400), (180, 460))
    page.dblclick("#draft-save")
    page.wait_for_timeout(500)
    assert len(held) == 1 and page.locator("#draft-save").is_disabled()
    held.pop().abort()
    page.get_by_text("Not stored").wait_for()
    page.dblclick("#draft-save")  # once more: it was not stored
    page.locator("#images button", has_text="onerror").click()
    wait_for(page, "document.getElementById('title').textContent.startsWith('<img')")
    page.locator("#images button", has_text=re.compile(r"^plain.*first", re.DOTALL)).click()
    wait_for(page, "document.getElementById('title').textContent === 'plain'")
    assert len(held) == 1 and page.locator("#draft-save:enabled").count() == 0
    held.pop().continue_()
    page.locator(".region-row").wait_for()
    assert page.locator("#draft").count() == 0 and not held
    assert len((archives.first / review.LOG).read_bytes().splitlines()) == 1
    (archives.first / review.LOG).unlink()


def test_escape_leaves_a_note_before_it_drops_the_region(page: Page) -> None:
    draw(page, (100, 400), (180, 460))
    page.fill("#draft-note", "missed")
    page.keyboard.press("Escape")
    assert page.input_value("#draft-note") == "missed"
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("d")
    page.keyboard.press("Escape")  # stops drawing anew
    assert page.input_value("#draft-note") == "missed"
    page.keyboard.press("Escape")
    page.locator("#draft").wait_for(state="detached")


def test_a_typed_note_outlives_drawing(page: Page) -> None:
    page.fill("#image-note", "out of focus")
    page.click("#draw")
    page.keyboard.press("Escape")
    assert page.input_value("#image-note") == "out of focus"


def test_another_image_ends_drawing(page: Page) -> None:
    page.keyboard.press("d")
    page.locator("#images button", has_text="onerror").click()
    wait_for(page, "document.getElementById('title').textContent.startsWith('<img')")
    before = place(page)
    at = middle(page)
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.move(at[0] - 90, at[1] - 40, steps=8)
    page.mouse.up()
    assert place(page)[0] > before[0] + 5


def test_a_review_is_of_the_image_that_is_seen(page: Page, archives: Archives) -> None:
    from unetpp_workflows.viewer import review
    from unetpp_workflows.viewer.catalogue import Catalogue

    held: list[Route] = []
    first = page.locator("#images [aria-current=true]").get_attribute("data-id")
    page.route(f"**/{first}/reviews", lambda r: held.append(r) if r.request.method == "GET" else r.continue_())
    page.fill("#image-note", "of the first")
    with page.expect_request(lambda request: request.method == "GET" and request.url.endswith("/reviews")):
        page.locator("[data-verdict=accepted]").click()
    page.locator("#images button", has_text="onerror").click()
    wait_for(page, "document.getElementById('title').textContent.startsWith('<img')")
    page.locator("[data-verdict=rejected]").wait_for()
    for route in held:
        route.continue_()
    page.wait_for_timeout(500)
    assert page.input_value("#image-note") == ""
    assert page.locator("#images [aria-current=true]").get_attribute("title") != "plain"
    page.locator("[data-verdict=rejected]").click()
    page.locator("#images .rejected").wait_for()
    results = Catalogue([archives.first]).results()
    said = {r.name: [(s["verdict"], s["note"]) for s in review.current(r)] for r in results}
    assert said.pop("plain") == [("accepted", "of the first")]
    assert list(said.values()) == [[("rejected", "")]]
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
