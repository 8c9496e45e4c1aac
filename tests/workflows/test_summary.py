"""What a call's summary says and the exit code it gives."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unetpp_workflows.record import ImageRecord
from unetpp_workflows.summary import ImageResult, Summary, print_summary


def _image(name: str, status: Any, **more: Any) -> ImageResult:
    return ImageResult(name=name, uri=f"/in/{name}.svs", status=status, **more)


@pytest.mark.parametrize(
    ("images", "code"),
    [
        ([], 0),
        ([_image("a", "done"), _image("b", "empty", message="nothing valid")], 0),
        ([_image("a", "done"), _image("b", "failed")], 1),
        ([_image("a", "partial")], 1),
        ([_image("a", "done", warning="MLflow did not answer")], 1),
    ],
)
def test_exit_code(images: list[ImageResult], code: int) -> None:
    assert Summary(tuple(images), 1.0).exit_code == code


def test_empty_and_failed_images_are_named_and_not_counted() -> None:
    summary = Summary((_image("a", "done"), _image("b", "empty"), _image("c", "failed"), _image("d", "partial")), 2.0)
    sentence = summary.sentence()
    assert sentence.startswith("1 of 4 images segmented")
    for part in ("nothing to segment in: b", "failed: c", "not complete: d"):
        assert part in sentence


def test_the_table_has_figures_and_where_the_record_is(tmp_path: Path) -> None:
    record = ImageRecord(
        name="[red]a",
        status="done",
        figures={
            "valid_px": 10,
            "classes": [
                {"name": "nucleus", "px": 4, "area": 1.25, "unit": "mm2", "objects": 4321, "background": False},
                {"name": "rest", "px": 6, "area": 9.5, "unit": "mm2", "objects": None, "background": True},
            ],
        },
    )
    file = io.StringIO()
    images = (
        ImageResult.of(tmp_path / "out/[red]a", record, uri="/in/a.svs"),
        _image("b", "failed", message="b.svs: no mpp in metadata [x]"),
        _image("c", "done", warning="MLflow did not answer"),
        _image("d", "partial", message="1 of 9 shards are not done"),
    )
    print_summary(Summary(images, 1.0), Console(file=file, width=200))
    text = file.getvalue()
    for part in (
        "[red]a",
        "nucleus 1.25 mm²",
        "4,321",
        f"{tmp_path}/out/<image>/record.json",
        "failed: b.svs: no mpp in metadata [x]",
        "warning: c: MLflow did not answer",
        "partial: d: 1 of 9 shards are not done",
    ):
        assert part in text
    assert "rest" not in text


def test_a_result_reads_only_its_own_record(tmp_path: Path) -> None:
    assert _image("a", "failed").record is None and _image("a", "failed", folder=tmp_path / "a").record is None
    (tmp_path / "a").mkdir()
    record = ImageRecord(name="a", status="done").write(tmp_path / "a")
    assert ImageResult.of(tmp_path / "a", record, uri="/in/a.svs").record == record
    assert _image("a", "failed", folder=tmp_path / "a").record is None, "what an earlier call made is not this one's"
