"""A whole call on a cluster: its CPUs prepare and finalize the images, and one that kills them costs only itself."""

from __future__ import annotations

import io
import os
import shutil
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unetpp import finalize
from unetpp_workflows import pipeline
from unetpp_workflows.config import RunConfig, load_config
from unetpp_workflows.inputs import Source
from unetpp_workflows.preparing import Prepared, all_prepared
from unetpp_workflows.steps import Call
from unetpp_workflows.summary import ImageResult, Summary

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=64", "tiling.shard=64")
CLUSTER = ("executor.kind=ray", "executor.address=auto", "executor.workers=1")
pytestmark = pytest.mark.usefixtures("ray_on_this_machine")


def call_of(package: Path) -> Call:
    return pipeline.start_call(load_config(sets=[*FAST, *CLUSTER]), package, {})


@pytest.fixture
def images(image: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(image, tmp_path / f"{name}.png")) for name in ("one", "two", "three")]


def test_a_call_on_a_cluster_makes_what_a_call_here_makes(
    tiny_package: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def run(name: str, *sets: str) -> Summary:
        config: RunConfig = load_config(sets=[*FAST, *sets])
        console = Console(file=io.StringIO())
        return pipeline.segment(images, tiny_package, tmp_path / name, config=config, console=console)

    def refuse(*_: object) -> None:
        raise AssertionError("finalized by the driver")

    assert run("here").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(finalize, "_pyramid", refuse)
        summary = run("there", *CLUSTER)
        assert summary.exit_code == 0 and not caplog.records
        assert all(image.record is not None and image.record.seconds["prepare"] > 0 for image in summary.images)
    for mine, theirs in zip(run("here").images, summary.images, strict=True):
        assert mine.reused and not theirs.reused and mine.record is not None and theirs.record is not None
        assert mine.record.shards["sha256"] == theirs.record.shards["sha256"]
        assert mine.record.figures == theirs.record.figures and mine.record.outputs == theirs.record.outputs
        assert mine.folder is not None and theirs.folder is not None
        assert (mine.folder / "polygons.geojson").read_bytes() == (theirs.folder / "polygons.geojson").read_bytes()
    assert [image.reused for image in run("there", *CLUSTER).images] == [True] * 3


def test_an_image_that_kills_whoever_opens_it_is_named_and_the_others_are_prepared(
    tiny_package: Path, images: list[Path], tmp_path: Path
) -> None:
    class Fatal(Call):
        def config_of(self, source: Source) -> RunConfig:
            if source.name == "two":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().config_of(source)

    plain = call_of(tiny_package)
    call = Fatal(**{info.name: getattr(plain, info.name) for info in fields(plain)})
    sources = [Source(str(path), tmp_path / "out" / path.stem) for path in (*images, tmp_path / "missing.png")]
    found = [ready for _, ready in all_prepared(call, sources, force=False)]
    one, two, three, missing = found
    assert isinstance(one, Prepared) and isinstance(three, Prepared)
    assert [len(ready.places) for ready in (one, three)] == [35, 35] and one.seconds["prepare"] > 0
    assert isinstance(two, ImageResult) and two.status == "failed" and "on the cluster" in str(two.message)
    assert isinstance(missing, ImageResult) and "missing.png" in str(missing.message)
    assert str(two.message).count("\n") == 0
