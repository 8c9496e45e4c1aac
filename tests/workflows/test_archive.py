"""The table of an output folder: a row per image of all calls, as pandas and the standard library read it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow.dataset
import pyarrow.parquet
import pytest
from rich.console import Console
from typer.testing import CliRunner

from unetpp.errors import EngineError
from unetpp.store import LabelStore
from unetpp_workflows import pipeline
from unetpp_workflows.archive import _parquet, image_row
from unetpp_workflows.cli import app
from unetpp_workflows.config import load_config
from unetpp_workflows.summary import Summary

Draw = Callable[..., Path]
FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=32", "executor.workers=2")
INK_PX = 10 * 10 + 20 * 30


@pytest.fixture
def run(ink_package: Path, ink_package_with_spacing: Path, tmp_path: Path) -> Callable[..., Summary]:
    def call(*inputs: Path | str, sets: tuple[str, ...] = (), physical: bool = False) -> Summary:
        model = ink_package_with_spacing if physical else ink_package
        config = load_config(sets=[*FAST, *sets])
        return pipeline.segment(inputs, model, tmp_path / "out", config=config, console=Console(file=io.StringIO()))

    return call


def test_the_table_has_a_row_for_every_image_of_every_call(run: Any, blots: Draw, tmp_path: Path) -> None:
    run(blots("a.png"))
    run(blots("b.png"), sets=("input.spacing=0.5um",), physical=True)
    (tmp_path / "in/c.png").write_bytes(b"no image")
    run(tmp_path / "in/c.png")
    table = pandas.read_parquet(tmp_path / "out/summary.parquet").set_index("name")
    assert table["status"].to_dict() == {"a": "done", "b": "done", "c": "failed"}
    assert table.loc["a", "area_px_ink"] == INK_PX and pandas.isna(table.loc["a", "area_mm2_ink"])
    assert (
        table.loc["b", "area_mm2_ink"] == pytest.approx(INK_PX * 0.25e-6) and table.loc["b", "spacing"] == "0.5 um/px"
    )
    assert table.loc["a", "objects_ink"] == 2
    assert (table.loc["a", "height"], table.loc["a", "width"], table.loc["a", "valid_share"]) == (96, 128, 1.0)
    assert (table.loc["a", "model"], len(table.loc["a", "model_digest"])) == ("ink", 64)
    assert table.loc["a", "uri"] == str(tmp_path / "in/a.png") and table.loc["c", "uri"] == str(tmp_path / "in/c.png")
    assert "c.png" in table.loc["c", "message"]
    for stage in ("read", "compute", "write", "finalize"):
        assert table.loc["a", f"seconds_{stage}"] > 0
    assert table.loc["a", "limited_by"] in ("read", "compute", "write")
    assert table.loc["a", "retries"] == 0
    with (tmp_path / "out/summary.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a", "b", "c"]
    assert (rows["a"]["area_px_ink"], rows["a"]["area_mm2_ink"]) == ("700.0", "")
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_night_on_which_nothing_opened_has_the_types_of_every_other(run: Any, blots: Draw, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    run(bad)
    failed = pyarrow.parquet.read_schema(tmp_path / "out/summary.parquet")
    (tmp_path / "out").rename(tmp_path / "failed")
    run(blots("a.png"), sets=("output.instances=true",))
    done = pyarrow.parquet.read_schema(tmp_path / "out/summary.parquet")
    assert [(name, failed.field(name).type, done.field(name).type) for name in failed.names] == [
        (name, done.field(name).type, done.field(name).type) for name in failed.names
    ]
    types = {name: str(done.field(name).type) for name in done.names}
    assert (types["height"], types["valid_share"], types["objects_ink"]) == ("int64", "double", "int64")
    both = pyarrow.dataset.dataset([str(tmp_path / of / "summary.parquet") for of in ("failed", "out")]).to_table()
    assert both["height"].to_pylist() == [None, 96]


def test_values_come_back_as_they_were() -> None:
    columns = {
        "name": ["a", 'é "b"\n', ""],
        "message": ["", None, "null"],
        "valid_px": [2**62 + 1, None, 0],
        "valid_share": [1 / 3, None, 5e-324],
        "area_px_ink": [7, math.inf, -0.0],
    }
    table = pyarrow.parquet.read_table(io.BytesIO(_parquet(columns)))
    assert table.to_pydict() == columns
    assert [str(kind) for kind in table.schema.types] == ["string", "string", "int64", "double", "double"]


def test_the_checksum_is_that_of_the_label_files(run: Any, blots: Draw, tmp_path: Path) -> None:
    [image] = run(blots("a.png")).images
    from unetpp.job import SegmentJob

    job = SegmentJob.load(tmp_path / "out/a")
    assert job is not None
    digest = hashlib.sha256()
    for shard in job.plan.shards():
        content = LabelStore(job.out, job.plan).shard_object(shard).read_bytes()
        digest.update(f"{shard.id} {hashlib.sha256(content).hexdigest()}\n".encode())
    assert image.record.shards["sha256"] == image_row(tmp_path / "out/a")["labels_sha256"] == digest.hexdigest()


def test_attempts_beyond_the_first_are_counted_and_unfinished_images_are_rows(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp.segment import ShardWorker

    real = ShardWorker.run

    def flaky(self: Any, shard: Any, attempt: int = 1) -> Any:
        if (shard.id == "1.2" and attempt == 1) or shard.id == "0.0":
            raise EngineError("poison")
        return real(self, shard, attempt)

    path = blots("slide.png")
    with monkeypatch.context() as patch:
        patch.setattr(ShardWorker, "run", flaky)
        run(path)
    [row] = pandas.read_parquet(tmp_path / "out/summary.parquet").to_dict("records")
    assert (row["status"], row["retries"], row["shards"] - row["committed"]) == ("partial", 1, 1)
    assert "poison" in row["message"] and row["valid_share"] < 1
    (tmp_path / "out/slide/record.json").unlink()
    assert image_row(tmp_path / "out/slide")["status"] == "running or interrupted"
    assert image_row(tmp_path / "out/slide")["committed"] == row["committed"]
    (tmp_path / "out/slide/record.json").write_text("{")
    assert image_row(tmp_path / "out/slide")["status"] == "damaged"


def test_status_prints_the_rows_as_lines_of_json(run: Any, blots: Draw, tmp_path: Path) -> None:
    run(blots("a.png"), blots("b.png"))
    done = CliRunner().invoke(app, ["status", str(tmp_path / "out"), "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    table = pandas.read_parquet(tmp_path / "out/summary.parquet").to_dict("records")
    assert done.exit_code == 0 and [row["name"] for row in rows] == ["a", "b"]
    for row, known in zip(rows, table, strict=True):
        assert {name: value for name, value in known.items() if not pandas.isna(value)} == {
            name: value for name, value in row.items() if value is not None
        }


def test_instances_are_counted_in_the_record_and_in_the_table(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("a.png")
    first = run(path).images[0].record
    [image] = run(path, sets=("output.instances=true",)).images
    second = image.record
    assert (image.reused, second.key) == (False, first.key)
    ink = second.figures["classes"][1]
    assert (ink["objects"], ink["instances"]) == (2, 2) and "instances" not in first.figures["classes"][1]
    assert len(pandas.read_parquet(tmp_path / "out/a" / second.outputs["instances"])) == 2
    assert pandas.read_parquet(tmp_path / "out/summary.parquet")["instances_ink"].to_list() == [2]
    assert run(path, sets=("output.instances=true",)).images[0].reused
    [plain] = run(path).images
    assert not plain.reused and "instances" not in plain.record.outputs
