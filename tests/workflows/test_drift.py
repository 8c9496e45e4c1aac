"""Images unlike the training images or their archive are named: in the record, the page, the table and the log."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from rich.console import Console

from unetpp.package import load_package, save_package
from unetpp_workflows import pipeline
from unetpp_workflows.config import load_config
from unetpp_workflows.drift import PROFILE, unlike_archive
from unetpp_workflows.summary import print_summary

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=32")


@pytest.fixture
def package(ink_package: Path, tmp_path: Path) -> Path:
    """The ink network, said to be trained on paper as bright as that of the pictures."""
    found = load_package(ink_package)
    training = {"profile": {"mean_red": [0.75, 0.85], "std_red": [0.1, 0.3]}}
    return save_package(
        tmp_path / "model", found.load_model(), replace(found.spec, training=training), "# ink\n"
    ).folder


def test_an_image_unlike_the_training_images_is_named_everywhere(
    package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    from PIL import Image

    usual, dark = blots("usual.png"), tmp_path / "in/dark.png"
    Image.fromarray(np.asarray(Image.open(usual)) // 4).save(dark)
    text = io.StringIO()
    console = Console(file=text, width=200)
    summary = pipeline.segment([usual, dark], package, tmp_path / "out", config=load_config(sets=FAST), console=console)
    fine, strange = (image.record for image in summary.images)
    pixels = np.asarray(Image.open(usual)) / 255
    assert fine is not None and fine.unusual == []
    assert fine.profile["mean_green"] == pytest.approx(pixels[..., 1].mean())
    assert strange is not None and [item["statistic"] for item in strange.unusual] == ["mean_red"]
    assert strange.profile["mean_red"] == pytest.approx(fine.profile["mean_red"] / 4, rel=0.02)
    print_summary(summary, console)
    assert "look twice: dark is unlike the training images: mean_red 0.2" in text.getvalue()
    assert "look twice: usual" not in text.getvalue()
    assert "Unlike the images" in (tmp_path / "out/dark/report.html").read_text()
    assert "Unlike the images" not in (tmp_path / "out/usual/report.html").read_text()
    table = pandas.read_parquet(tmp_path / "out/summary.parquet").set_index("name")
    assert "usual 0.7 to 0.9 in training" in table.loc["dark", "unusual"] and pandas.isna(table.loc["usual", "unusual"])
    assert table.loc["usual", "profile_mean_green"] == pytest.approx(fine.profile["mean_green"])


def test_rows_are_compared_with_the_rows_of_their_model() -> None:
    def row(model: str, red: float, ink: float, status: str = "done") -> dict[str, object]:
        values = {"area_px_ink": ink, "area_px_paper": 100 - ink, "valid_share": 0.5}
        return {"status": status, "model_digest": model, f"{PROFILE}mean_red": red, **values}

    rows = [row("a", 0.5 + 0.001 * k, 10 + 0.1 * k) for k in range(24)]
    rows += [row("a", 0.9, 11), row("a", 0.51, 60), row("b", 0.9, 11), row("a", 0.9, 11, "failed")]
    found = unlike_archive(rows)
    assert not any(found[:24]) and found[26] == found[27] == []
    assert [item.statistic for item in found[24]] == [f"{PROFILE}mean_red"]
    assert {item.statistic for item in found[25]} == {"share_px_ink", "share_px_paper"}
    assert not any(unlike_archive(rows[:10]))


@pytest.mark.parametrize("part", ["mask", "region", "small region"])
def test_windows_lie_in_the_part_that_is_segmented(package: Path, tmp_path: Path, part: str) -> None:
    """Only a quarter of a large picture counts, or 150 x 100 px between two of the windows of the whole one."""
    from PIL import Image

    pixels = np.full((2048, 1536, 3), 20, np.uint8)
    pixels[1024:, 768:] = 220
    mask = np.zeros((256, 192), np.uint8)
    mask[128:, 96:] = 255
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/large.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    config = load_config(sets=FAST[:3])
    given = {
        "mask": {"mask": str(tmp_path / "mask.png")},
        "region": {"region": "768,1024,1536,2048"},
        "small region": {"region": "768,1024,918,1124"},
    }
    config = config.model_copy(update={"input": config.input.model_copy(update=given[part])})
    quiet = Console(file=io.StringIO())
    summary = pipeline.segment([tmp_path / "in/large.png"], package, tmp_path / "out", config=config, console=quiet)
    record = summary.images[0].record
    assert record is not None and record.profile["mean_red"] == pytest.approx(220 / 255)
