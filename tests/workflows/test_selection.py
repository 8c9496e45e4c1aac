"""Reruns over an archive: only failed images, only changed ones, or all anew; and what a run logs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unetpp.errors import ConfigError, StoreError
from unetpp.io import open_raster
from unetpp_workflows.config import RunConfig
from unetpp_workflows.inputs import Source
from unetpp_workflows.lease import Lease
from unetpp_workflows.pipeline import segment
from unetpp_workflows.selection import Selection, parse_moment
from unetpp_workflows.summary import Summary

CONFIG = RunConfig.model_validate({"tracking": {"enabled": False}})


def run(package: Path, tmp_path: Path, **selection: object) -> Summary:
    chosen = Selection(**selection)  # type: ignore[arg-type]
    return segment([tmp_path / "in"], package, tmp_path / "out", config=CONFIG, selection=chosen)


def test_retry_takes_only_what_failed_or_was_not_finished(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    good, bad = blots("good.png"), blots("bad.png")
    whole = bad.read_bytes()
    bad.write_bytes(whole[:200])
    with pytest.raises(ConfigError, match=r"none of 2 image\(s\) was begun"):
        run(ink_package, tmp_path, retry=True)
    assert run(ink_package, tmp_path).exit_code == 1
    blots("new.png")
    assert [(i.name, i.status) for i in run(ink_package, tmp_path, retry=True).images] == [("bad", "failed")]
    bad.write_bytes(whole)
    assert [(i.name, i.status) for i in run(ink_package, tmp_path, retry=True).images] == [("bad", "done")]
    assert run(ink_package, tmp_path, retry=True).images == ()
    (tmp_path / "out/bad/record.json").unlink()  # as in a run that is killed before it has finished the image
    assert [(i.name, i.status) for i in run(ink_package, tmp_path, retry=True).images] == [("bad", "done")]
    assert [i.reused for i in run(ink_package, tmp_path).images] == [True, True, False]
    assert good.exists()


def test_since_takes_only_changed_files(ink_package: Path, blots: Callable[..., Path], tmp_path: Path) -> None:
    old, new = blots("old.png"), blots("new.png")
    os.utime(old, (1e9, 1e9))
    moment = parse_moment("2020-01-01")
    assert [i.name for i in run(ink_package, tmp_path, since=moment).images] == ["new"]
    os.utime(new, (1e9, 1e9))
    assert run(ink_package, tmp_path, since=moment).images == ()
    with pytest.raises(ConfigError, match="write it like"):
        parse_moment("last week")


def test_since_looks_at_every_file_of_an_image(tmp_path: Path) -> None:
    import zarr

    image = tmp_path / "image.zarr"
    zarr.create_array(image, data=np.ones((64, 64, 3), np.uint8), chunks=(64, 64, 3))
    slide, part = tmp_path / "slide.mrxs", tmp_path / "slide" / "Data0000.dat"
    part.parent.mkdir()
    for file in (slide, part):
        file.touch()
    for file in tmp_path.rglob("*"):
        os.utime(file, (1e9, 1e9))
    mosaic = tmp_path / "whole.mosaic.toml"
    mosaic.touch()
    os.utime(mosaic, (1e9, 1e9))
    chosen = Selection(since=parse_moment("2020-01-01"))
    sources = [Source(str(path), tmp_path / "out" / path.stem) for path in (image, slide, mosaic)]
    # Which files a mosaic has only opening it would tell.
    assert [chosen.takes(source) for source in sources] == [False, False, True]
    part.write_bytes(b"new")
    next(file for file in image.rglob("c/*/*/*") if file.is_file()).touch()
    for folder in (image, part.parent):
        os.utime(folder, (1e9, 1e9))
    assert all(map(chosen.takes, sources))


def test_force_segments_anew_and_opens_each_image_once_for_it(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr("unetpp.segment.open_raster", lambda uri: opened.append(uri) or open_raster(uri))
    blots("a.png")
    run(ink_package, tmp_path)
    record = tmp_path / "out/a/commits"
    before = {path.name: path.stat().st_mtime_ns for path in record.iterdir()}
    assert run(ink_package, tmp_path).images[0].reused
    opened.clear()
    again = run(ink_package, tmp_path, force=True)
    assert again.images[0].status == "done" and not again.images[0].reused and len(opened) == 1
    after = {path.name: path.stat().st_mtime_ns for path in record.iterdir()}
    assert before.keys() == after.keys() and all(after[name] > time for name, time in before.items())


def test_force_deletes_no_result_of_an_image_that_is_not_there(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    images, away = [blots("a.png"), blots("b.png")], tmp_path / "away.png"
    assert run(ink_package, tmp_path).exit_code == 0
    polygons = (tmp_path / "out/a/polygons.geojson").read_bytes()
    images[0].rename(away)
    again = segment(images, ink_package, tmp_path / "out", config=CONFIG, selection=Selection(force=True))
    assert [image.status for image in again.images] == ["failed", "done"]
    assert (tmp_path / "out/a/polygons.geojson").read_bytes() == polygons
    away.rename(images[0])
    assert [image.reused for image in run(ink_package, tmp_path).images] == [True, True]


@pytest.mark.parametrize("damaged", ["job.json", "labels.ome.zarr/zarr.json", "commits"])
def test_force_deletes_its_own_files_alone_and_needs_none_of_them(
    damaged: str, ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    """What somebody put beside a result, here the annotations of an image, is not ours to delete."""
    blots("a.png")
    run(ink_package, tmp_path)
    folder = tmp_path / "out/a"
    ours = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "annotations.geojson").write_text("mine")
    if (folder / damaged).is_dir():
        for file in (folder / damaged).rglob("*.json*"):
            file.write_text("{")
    else:
        (folder / damaged).write_text("{")
    (folder / "polygons.geojson").write_text("damaged")
    [again] = run(ink_package, tmp_path, force=True).images
    assert again.status == "done" and not again.reused and json.loads((folder / "job.json").read_text())["uri"]
    assert (folder / "annotations.geojson").read_text() == "mine"
    assert all((folder / name).is_file() for name in ours if "journal" not in name)
    for name in ("polygons.geojson", "labels.ome.zarr/classes/0/c/0/0", "labels.ome.zarr/zarr.json"):
        assert (folder / name).read_bytes() == ours[name], name


def test_an_image_in_the_output_folder_outlives_its_results(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    image = tmp_path / "in/case/case.png"
    image.parent.mkdir(parents=True)
    blots("other.png").rename(image)
    whole = image.read_bytes()
    for force in (False, True):
        done = segment([image], ink_package, tmp_path / "in", config=CONFIG, selection=Selection(force=force))
        assert [i.status for i in done.images] == ["done"] and image.read_bytes() == whole
        assert [path.name for path in image.parent.iterdir()] == ["case.png"]
    again = segment([tmp_path / "in"], ink_package, tmp_path / "in", config=CONFIG)
    assert [(i.uri, i.reused) for i in again.images] == [(str(image), True)]


def test_two_runs_do_not_write_one_folder(ink_package: Path, blots: Callable[..., Path], tmp_path: Path) -> None:
    blots("a.png")
    (tmp_path / "out").mkdir()
    with Lease(tmp_path / "out"), pytest.raises(StoreError, match="being written by process"):
        run(ink_package, tmp_path)
    assert run(ink_package, tmp_path).exit_code == 0


def test_a_run_logs_lines_of_json(ink_package: Path, blots: Callable[..., Path], tmp_path: Path) -> None:
    blots("a.png")
    blots("b.png").write_bytes(b"no png")
    run(ink_package, tmp_path)
    [log] = (tmp_path / "out/logs").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events] == [
        "run_started", "image_prepared", "image_finished", "shard_committed", "image_finished", "run_finished",
    ]  # fmt: skip
    assert len({e["run"] for e in events}) == 1 and events[-1]["exit_code"] == 1
    assert {(e["image"], e["status"]) for e in events if e["event"] == "image_finished"} == {
        ("a", "done"),
        ("b", "failed"),
    }
    assert events[3]["valid_px"] == 96 * 128
