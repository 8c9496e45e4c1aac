"""The page of an output folder: every image, what failed, object sizes and throughput, self-contained."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from unetpp_workflows.archive_page import Sizes, object_sizes, read_runs
from unetpp_workflows.cli import app
from unetpp_workflows.events import LOGS
from unetpp_workflows.outputs import image_folders

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext


def run(*command: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})
    return found.exit_code, found.output


@pytest.fixture
def output(ink_package: Path, blots: Callable[..., Path], tmp_path: Path) -> Path:
    """Two images of two blots, 100 and 600 px, and one that does not decode."""
    blots("a.png")
    blots("b&<b>.png")
    bad = blots("torn.png")
    bad.write_bytes(bad.read_bytes()[:150])
    code, _ = run("segment", tmp_path / "in", "-m", ink_package, "-o", tmp_path / "out", "--instances",
                  "--set", "tracking.enabled=false")  # fmt: skip
    assert code == 1
    return tmp_path / "out"


def test_the_page_shows_all_images_and_what_failed(output: Path) -> None:
    run("report", output)
    page = (output / "report.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 3 and all((output / link.replace("&amp;", "&")).is_file() for link in links)
    assert not re.search(r"""src=["'](?!data:)""", page) and "<b>.png" not in page
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "2 done" in page and "1 failed" in page and re.search(r"<th scope=\"row\">torn</th><td>failed</td>", page)
    assert re.search(r"ink</span></td><td class=\"n\">4</td>", page)  # objects of both images
    assert "1,400 px" in page  # ink of both images
    assert "Throughput of the last run" in page and "a part failed" in page
    # Four classes of plots: shares, object sizes, throughput, stages.
    assert page.count("<svg") == 4 and "nan" not in re.sub(r"base64,[^\"]+", "", page)


def test_pages_fit_a_phone_and_keep_words_whole_beside_long_names(output: Path, browser: BrowserContext) -> None:
    shutil.move(output / "torn", output / ("0b0d577159f0d6c266f360f7b8dfde46" * 2))
    run("report", output)
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 780})
    for path in (output / "report.html", output / "a" / "report.html"):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390, path
        cells = page.evaluate("[...document.querySelectorAll('td.v')].map(cell => cell.clientWidth)")
        assert cells and min(cells) > 100, path
    page.close()


def test_a_page_of_one_image_is_not_overwritten(output: Path) -> None:
    assert run("report", output / "a")[0] == 0
    assert "<title>a · done" in (output / "a/report.html").read_text() and not (output / "report.html").exists()


def test_a_damaged_table_or_picture_is_named_and_the_rest_is_drawn(output: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(output, broken)
    table, picture = broken / "a/instances.parquet", broken / "a/picture.jpg"
    table.write_bytes(table.read_bytes()[:-40])
    picture.write_bytes(picture.read_bytes()[:100])
    code, text = run("report", broken)
    assert code == 1 and f"is drawn without what is damaged: {table} is damaged" in " ".join(text.split())
    page = (broken / "report.html").read_text()
    assert f"Not counted: {table} is damaged" in page and f"Not drawn: {picture} is damaged" in page
    assert page.count('src="data:image/jpeg;base64,') == 1, "the other image's picture"


def test_sizes_in_two_units_are_two_rows_and_no_plot(
    output: Path, ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    blots("scaled.png")
    code, _ = run("segment", tmp_path / "in/scaled.png", "-m", ink_package, "-o", output, "--instances", "--mpp", "10",
                  "--set", "tracking.enabled=false")  # fmt: skip
    assert code == 0
    found, _ = object_sizes(image_folders(output))
    assert {key: sizes.count for key, sizes in found.items()} == {("ink", "px"): 4, ("ink", "µm²"): 2}
    assert found["ink", "µm²"].median() == pytest.approx(10_000, rel=0.1)
    run("report", output)
    page = (output / "report.html").read_text()
    assert "Sizes of objects" not in page and " px</td>" in page and " µm²</td>" in page


def test_sizes_are_those_of_the_tables(output: Path) -> None:
    found, unread = object_sizes(image_folders(output))
    assert not unread and list(found) == [("ink", "px")]
    assert found["ink", "px"].count == 4 and found["ink", "px"].unit == "px"
    assert found["ink", "px"].bins == {26: 2, 36: 2}  # 4 log2 of 100 and of 600
    many = Sizes("px", (0, 0, 0))
    areas = np.random.default_rng(0).lognormal(5, 1, 10_000)
    many.add(areas[:300])
    many.add(areas[300:])
    assert many.median() == pytest.approx(np.median(areas), rel=0.1) and sum(many.bins.values()) == many.count


def test_runs_are_read_from_logs_that_were_cut_short(output: Path) -> None:
    (run_,) = read_runs(output)
    assert run_.exit_code == 1 and (run_.shards, run_.valid_px) == (2, 2 * 96 * 128)
    log = next((output / LOGS).glob("*.jsonl"))
    lines = log.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["event"] != "run_finished"]
    log.write_text("\n".join([*kept, lines[-1][:20]]))
    (cut,) = read_runs(output)
    assert cut.exit_code is None and (cut.shards, cut.bins) == (run_.shards, run_.bins)
    run("report", output)
    assert "did not end" in (output / "report.html").read_text()


def test_a_long_run_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seconds, pixels = np.sort(rng.uniform(0, 1e5, 20_000)).round(3), rng.integers(1, 10**6, 20_000)
    start = datetime.fromisoformat("2026-11-28T20:00:00.000+00:00")
    events = [{"time": start.isoformat(), "event": "run_started", "images": 1}] + [
        {"time": (start + timedelta(seconds=after)).isoformat(), "event": "shard_committed", "valid_px": px}
        for after, px in zip(seconds.tolist(), pixels.tolist(), strict=True)
    ]
    (tmp_path / LOGS).mkdir()
    (tmp_path / LOGS / "run.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")
    tracemalloc.start()
    (run_,) = read_runs(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000, "a shard's time and pixels take a hundred bytes"
    assert (run_.shards, run_.valid_px, run_.last) == (20_000, pixels.sum(), seconds[-1])
    edges = np.arange(len(run_.bins) + 1) * run_.width
    assert edges[-1] / 2 < run_.last < edges[-1]
    assert run_.bins == np.histogram(seconds, edges, weights=pixels)[0].tolist()
