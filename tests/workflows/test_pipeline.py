"""A whole call on images whose segmentation is known: figures, records, resume, and one bad image among good ones."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from rich.console import Console

from tests.disk import fill
from unetpp.errors import ConfigError, EngineError, ModelNotFoundError
from unetpp_workflows import finishing, pipeline, preparing, steps
from unetpp_workflows.config import RunConfig, load_config
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.report import PICTURE
from unetpp_workflows.summary import Summary, print_summary
from unetpp_workflows.truth import Truth

Draw = Callable[..., Path]
FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=32", "executor.workers=2")
INK_PX = 10 * 10 + 20 * 30


@pytest.fixture
def run(ink_package: Path, tmp_path: Path) -> Callable[..., Summary]:
    def call(*inputs: Path | str, sets: tuple[str, ...] = (), said: io.StringIO | None = None, **more: Any) -> Summary:
        config = load_config(sets=[*FAST, *sets])
        console = Console(file=said or io.StringIO())
        return pipeline.segment(inputs, ink_package, tmp_path / "out", config=config, console=console, **more)

    return call


def test_a_known_image_gives_its_figures_and_a_complete_record(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("slide.png")
    summary = run(path)
    assert summary.exit_code == 0
    [image] = summary.images
    folder = tmp_path / "out/slide"
    assert (image.name, image.status, image.folder, image.reused) == ("slide", "done", folder, False)
    record = ImageRecord.read(folder)
    assert record == image.record is not None
    paper, ink = record.figures["classes"]
    assert (ink["px"], ink["area"], ink["unit"], ink["objects"]) == (INK_PX, INK_PX, "px", 2)
    assert (paper["px"], paper["objects"]) == (96 * 128 - INK_PX, None)
    assert record.input["uri"] == str(path)
    assert record.model["name"] == "ink"
    assert len(record.model["digest"]) == 64
    assert record.engine["name"] == "torch"
    assert record.software["unetpp"]
    assert record.shards["total"] == record.shards["committed"] > 1
    for file in record.outputs.values():
        assert (folder / file).exists(), file
    assert Image.open(folder / PICTURE).size == (128, 96)
    written = json.loads((folder / "config.json").read_text())
    assert RunConfig.model_validate(written["config"]).tiling.core == 32
    assert written["hash"] == record.config_hash


@pytest.mark.parametrize("kind", [str, Path])
def test_one_image_may_be_given_by_itself(
    ink_package: Path, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[str] | type[Path]
) -> None:
    """A text is no list of letters, of which / would be every image of the machine."""
    blots("a.png")
    monkeypatch.chdir(tmp_path / "in")
    found = pipeline.segment(kind("a.png"), ink_package, tmp_path / "out", config=load_config(sets=[*FAST]))
    assert [(image.name, image.status) for image in found.images] == [("a", "done")]


def test_a_second_call_reuses_the_image_without_opening_it(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = blots("slide.png")
    run(path)
    before = _bytes(tmp_path / "out")

    def refuse(*_: object) -> None:
        raise AssertionError("a finished image was prepared again")

    monkeypatch.setattr(preparing, "prepare", refuse)
    [image] = run(path).images
    assert (image.status, image.reused) == ("done", True)
    assert _bytes(tmp_path / "out") == before


@pytest.mark.parametrize("change", ["configuration", "input", "product"])
def test_what_changed_is_made_again(run: Any, blots: Draw, tmp_path: Path, change: str) -> None:
    path, said = blots("slide.png"), io.StringIO()
    first = run(path, said=said).images[0].record
    sets: tuple[str, ...] = ()
    if change == "configuration":
        sets = ("tiling.core=64",)
    elif change == "input":
        blots("slide.png", height=80)
    else:
        (tmp_path / "out/slide" / first.outputs["report"]).unlink()
    assert "are replaced" not in said.getvalue()
    [second] = run(path, sets=sets, said=said).images
    assert ("the results of 1 image(s)" in said.getvalue()) == (change != "product")
    assert (second.status, second.reused) == ("done", False)
    assert second.record.figures["classes"][1]["px"] == INK_PX
    assert (second.record.key == first.key) == (change == "product")
    assert (tmp_path / "out/slide/report.html").exists()


def test_another_format_keeps_the_key_and_the_shards_and_makes_only_itself(
    run: Any, blots: Draw, tmp_path: Path
) -> None:
    path = blots("slide.png")
    first = run(path).images[0].record
    assert first.formats == ["geojson"]
    before = _bytes(tmp_path / "out/slide/labels.ome.zarr") | _bytes(tmp_path / "out/slide/commits")
    written = (tmp_path / "out/slide/polygons.geojson").stat().st_mtime_ns
    formats = ("output.formats='geojson,ome-tiff'",)
    [second] = run(path, sets=formats).images
    assert (second.status, second.reused) == ("done", False)
    assert (second.record.key, second.record.config_hash) == (first.key, first.config_hash)
    assert second.record.outputs["ome_tiff"] == "classes.ome.tif"
    assert _bytes(tmp_path / "out/slide/labels.ome.zarr") | _bytes(tmp_path / "out/slide/commits") == before
    assert (tmp_path / "out/slide/polygons.geojson").stat().st_mtime_ns == written
    for sets in (formats, ()):  # what is there is enough
        [third] = run(path, sets=sets).images
        assert third.reused
    with pytest.raises(ConfigError, match=r"output\.formats.*ome-tif'"):
        run(path, sets=("output.formats='ome-tif'",))


def test_bad_images_are_named_in_one_line_and_the_others_are_done(run: Any, blots: Draw, tmp_path: Path) -> None:
    good = blots("good.png")
    bad = {
        "missing.png": None,
        "truncated.png": good.read_bytes()[:150],
        "notes.txt": b"no image at all",
        "empty.tif": b"",
    }
    paths = [tmp_path / "in" / name for name in bad]
    for path, content in zip(paths, bad.values(), strict=True):
        if content is not None:
            path.write_bytes(content)
    four_bands = tmp_path / "in/bands.tif"
    import tifffile

    tifffile.imwrite(four_bands, np.zeros((64, 64, 4), np.uint16), photometric="minisblack", planarconfig="contig")
    (tmp_path / "nothing").mkdir()
    summary = run(paths[0], paths[1], good, paths[2], paths[3], four_bands, tmp_path / "nothing")
    assert summary.exit_code == 1
    assert {image.name: image.status for image in summary.images} == {
        **dict.fromkeys(["missing", "truncated", "notes", "empty", "bands", str(tmp_path / "nothing")], "failed"),
        "good": "done",
    }
    for image in summary.of("failed"):
        assert image.message is not None
        assert Path(image.uri).name in image.message
        assert "\n" not in image.message
        assert "unexpected" not in image.message
    record = ImageRecord.read(tmp_path / "out/missing")
    assert record is not None
    assert (record.status, record.input["uri"]) == ("failed", str(paths[0]))


def test_odd_entries_of_an_archive_are_named_in_one_line_and_the_others_are_done(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = blots("good.png")
    (good.parent / os.fsdecode(b"caf\xe9.png")).write_bytes(good.read_bytes())
    (good.parent / "up").symlink_to("..")
    (good.parent / "loop").symlink_to("loop")
    monkeypatch.chdir(good.parent)
    summary = run(good.parent, "good.png", f"../in/{good.name}")
    assert summary.exit_code == 1
    assert sorted((Path(image.uri).name, image.status) for image in summary.images) == [
        ("caf\\udce9.png", "failed"), ("good.png", "done"), ("loop", "failed"),
    ]  # fmt: skip
    assert all(image.message and "\n" not in image.message for image in summary.of("failed"))
    assert [path.name for path in (tmp_path / "out").glob("*/job.json")] == ["job.json"], "one image has one folder"


def test_an_unexpected_error_of_one_image_does_not_stop_the_others(
    run: Any, blots: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = preparing.prepare

    def fragile(call: Any, source: Any, **how: Any) -> Any:
        if source.name == "a":
            raise ZeroDivisionError("surprise")
        return real(call, source, **how)

    monkeypatch.setattr(preparing, "prepare", fragile)
    first, second = run(blots("a.png"), blots("b.png")).images
    assert first.status == "failed"
    assert first.message is not None
    assert "unexpected ZeroDivisionError: surprise" in first.message
    assert second.status == "done"


def test_an_image_without_a_valid_pixel_is_empty_and_not_segmented(run: Any, blots: Draw, tmp_path: Path) -> None:
    Image.new("L", (16, 12), 0).save(tmp_path / "mask.png")
    summary = run(blots("blank.png"), sets=(f"input.mask={tmp_path / 'mask.png'}",))
    assert summary.exit_code == 0
    assert [image.status for image in summary.images] == ["empty"]
    assert "nothing to segment in: blank" in summary.sentence()
    assert summary.sentence().startswith("0 of 1")


def test_a_failing_shard_makes_the_image_partial_and_the_next_call_completes_it(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp.segment import ShardWorker

    real = ShardWorker.run

    def poisoned(self: Any, shard: Any, attempt: int = 1) -> Any:
        if shard.id == "1.2":
            raise EngineError("poison")
        return real(self, shard, attempt)

    path = blots("slide.png")
    with monkeypatch.context() as patch:
        patch.setattr(ShardWorker, "run", poisoned)
        summary = run(path)
    [image] = summary.images
    assert (image.status, summary.exit_code) == ("partial", 1)
    assert "poison" in (image.message or "")
    assert image.record.shards["failed"].keys() == {"1.2"}
    assert image.record.figures == {}
    [image] = run(path).images
    assert image.status == "done"
    assert image.record.figures["classes"][1]["px"] == INK_PX


def test_an_image_is_finished_while_the_next_is_computed(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp_workflows.progress import ShardMeter

    real = ShardMeter.add
    first = tmp_path / "out/first"

    def wait_for_the_first(self: ShardMeter, *values: Any) -> None:
        real(self, *values)
        waits_until = time.monotonic() + 60
        while self.done == self.total and ImageRecord.read(first) is None and time.monotonic() < waits_until:
            time.sleep(0.01)
        if self.done == self.total:
            seen.append((first / "report.html").exists() and ImageRecord.read(first) is not None)

    seen: list[bool] = []
    monkeypatch.setattr(ShardMeter, "add", wait_for_the_first)
    summary = run(blots("first.png"), blots("second.png"))
    assert seen == [True] and [image.status for image in summary.images] == ["done", "done"]


def test_on_many_cores_processes_finish_the_images(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was finished in this process")

    monkeypatch.setattr(finishing, "cpu_count", lambda: 8)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_report", refuse)
        summary = run(blots("first.png"), blots("second.png"))
    assert [(image.status, image.message) for image in summary.images] == [("done", None)] * 2
    for image in summary.images:
        assert image.record.figures["classes"][1]["px"] == INK_PX
        assert image.record == ImageRecord.read(tmp_path / "out" / image.name)
        assert set(image.record.seconds) >= {"prepare", "compute", "finalize", "report"}


def test_an_image_whose_process_is_killed_is_finished_here(
    run: Any, blots: Draw, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kill_the_first() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for child in finishing_processes():
                os.kill(child, signal.SIGKILL)
                return
            time.sleep(0.01)

    monkeypatch.setattr(finishing, "cpu_count", lambda: 8)
    killer = threading.Thread(target=kill_the_first)
    killer.start()
    summary = run(blots("first.png"), blots("second.png"))
    killer.join()
    assert [image.status for image in summary.images] == ["done", "done"]
    assert "is finished once more, here: a process of this machine ended with -9" in caplog.text


def test_an_interrupted_call_continues_where_it_was(
    run: Any, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp_workflows.progress import ShardMeter

    real = ShardMeter.add

    def interrupt(self: ShardMeter, *values: Any) -> None:
        real(self, *values)
        if self.done == 3:
            raise KeyboardInterrupt

    path = blots("slide.png")
    with monkeypatch.context() as patch:
        patch.setattr(ShardMeter, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    commits = {file: file.read_bytes() for file in (tmp_path / "out/slide/commits").glob("*.json")}
    assert len(commits) >= 3
    assert ImageRecord.read(tmp_path / "out/slide") is None
    [image] = run(path).images
    assert image.record.figures["classes"][1]["px"] == INK_PX
    assert all(file.read_bytes() == content for file, content in commits.items()), "a committed shard was made again"


@pytest.mark.parametrize(("left", "lacks"), [(12, ["summary.parquet"]), (4, ["summary.parquet", "logs/"])])
def test_a_disk_that_is_full_at_the_end_hides_nothing_of_what_was_done(
    blots: Draw, ink_package: Path, small_disk: Callable[[int], Path], left: int, lacks: list[str]
) -> None:
    disk, image, said = small_disk(1024), blots("a.png"), io.StringIO()

    def call() -> Summary:
        config, console = load_config(sets=FAST), Console(file=said, width=1000)
        summary = pipeline.segment(image, ink_package, disk / "out", config=config, console=console)
        print_summary(summary, console)
        return summary

    assert call().exit_code == 0
    (disk / "out/summary.parquet").unlink()
    ballast = fill(disk, left)  # of it the lease takes 4 KiB, and the log
    said.truncate(0)
    full = call()
    assert [image.status for image in full.images] == ["done"] and full.exit_code == 1
    assert len(full.faults) == len(lacks) and "1 of 1 images segmented" in said.getvalue()
    for name in lacks:
        assert f"warning: cannot write {disk / 'out' / name}" in said.getvalue()
    assert "No space left on device; free disk space and run the same command again" in full.faults[-1]
    ballast.unlink()
    assert call().exit_code == 0 and (disk / "out/summary.parquet").exists()


def test_a_disk_that_gets_full_leaves_every_image_told(
    run: Any, blots: Draw, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    small_disk(100)
    (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
    summary = run(blots("a.png"), blots("b.png"))
    assert [image.status for image in summary.images] == ["failed", "failed"] and summary.exit_code == 1
    assert all("No space left on device; free disk space" in str(image.message) for image in summary.images)
    assert any("/logs/" in fault for fault in summary.faults)


def test_truth_gives_iou_per_class_and_ignores_255(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("scene.png")
    truth = np.zeros((96, 128), np.uint8)
    truth[5:15, 5:15] = 7  # one blot of two
    truth[40:60, 60:75] = 255  # half of the other is unknown
    Image.fromarray(truth).save(tmp_path / "truth.png")
    [image] = run(path, truths={str(path): Truth(tmp_path / "truth.png", {"ink": 7})}).images
    assert image.record.iou == {"ink": pytest.approx(100 / 400)}
    assert "0.250" in (image.folder / "report.html").read_text()


def test_items_of_a_band_list_have_truths_of_their_own(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("scene.png")
    features = [
        {"type": "Feature", "stac_version": "1.1.0", "id": key, "assets": {"v": {"href": str(path)}}}
        for key in ("A", "B")
    ]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    bands = ", ".join(f'{{ asset = "v", band = {number} }}' for number in (1, 2, 3))
    (tmp_path / "list.bands.toml").write_text(f'items = "items.json"\nbands = [{bands}]')
    (tmp_path / "truths").mkdir()
    for name, blot in (("A", np.s_[5:15, 5:15]), ("B", np.s_[:, :])):
        truth = np.zeros((96, 128), np.uint8)
        truth[blot] = 7
        Image.fromarray(truth).save(tmp_path / "truths" / f"{name}.png")
    sets = (f"truth.path={tmp_path / 'truths'}", "truth.classes={ink = 7}")
    first, second = run(tmp_path / "list.bands.toml", sets=sets).images
    assert (first.name, first.record.warning, second.name, second.record.warning) == ("A", None, "B", None)
    assert first.record.iou == {"ink": pytest.approx(100 / INK_PX)}
    assert second.record.iou == {"ink": pytest.approx(INK_PX / (96 * 128))}
    # Corrected, one of them counts anew, and only that.
    Image.fromarray(np.full((96, 128), 7, np.uint8)).save(tmp_path / "truths" / "A.png")
    first, second = run(tmp_path / "list.bands.toml", sets=sets).images
    assert (first.reused, second.reused) == (False, True)
    assert first.record.iou == {"ink": pytest.approx(INK_PX / (96 * 128))}


def test_a_truth_that_does_not_fit_is_a_warning(run: Any, blots: Draw, tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "truth.png")
    summary = run(blots("scene.png"), sets=(f"truth.path={tmp_path / 'truth.png'}",))
    [image] = summary.images
    assert (image.status, summary.exit_code) == ("done", 1)
    assert "not scored" in (image.warning or "")


def test_runs_are_recorded_in_mlflow_and_a_dead_store_is_only_a_warning(
    run: Any, blots: Draw, tmp_path: Path, own_home: Path
) -> None:
    from unetpp_workflows.mlflow_store import init_store

    path = blots("slide.png")
    (tmp_path / "file").write_text("")
    summary = run(path, sets=("tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db"))
    [image] = summary.images
    assert (image.status, summary.exit_code) == ("done", 1)
    assert "not recorded in MLflow" in (image.warning or "")
    uri = f"sqlite:///{own_home}/mlflow.db"
    [image] = run(path, sets=("tracking.enabled=true", f"tracking.uri={uri}")).images
    assert (image.warning, image.reused) == (None, False)
    found = init_store(uri).get_run(image.record.tracking_run)
    assert found.data.metrics["px.ink"] == INK_PX
    [image] = run(path, sets=("tracking.enabled=true", f"tracking.uri={uri}")).images
    assert image.reused


def test_a_store_that_does_not_answer_keeps_few_images_waiting(
    run: Any, blots: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:  # it takes connections and says nothing
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        images = [blots(f"{name}.png") for name in "abcd"]
        summary = run(*images, sets=("tracking.enabled=true", f"tracking.uri={uri}"))
        server.settimeout(0)
        asked = 0
        with suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
                asked += 1
    assert all(image.status == "done" and "not recorded in MLflow" in image.warning for image in summary.images)
    assert asked == 1


def test_metadata_of_the_image_reaches_no_output(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("slide.png")
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", "JANE ROE 1234")
    Image.open(path).save(path, pnginfo=info)
    assert run(path).exit_code == 0
    for file, content in _bytes(tmp_path / "out").items():
        assert b"JANE ROE" not in content, file


def test_a_call_without_a_usable_model_does_nothing(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("slide.png")
    with pytest.raises(ConfigError, match="no model"):
        pipeline.segment([path], output=tmp_path / "out")
    with pytest.raises(ModelNotFoundError):
        pipeline.segment([path], "no-such-model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def finishing_processes() -> list[int]:
    """Return the processes that this one started to finish images."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            words = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"executors.processes" in words:
            found.append(int(path.parent.name))
    return found


def _bytes(folder: Path) -> dict[Path, bytes]:
    """Every file but the runs' logs, of which each call adds one."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "logs")
    return {path: path.read_bytes() for path in files}


def test_uncertainty_ranks_regions_and_images(tiny_package: Path, tmp_path: Path) -> None:
    import pyarrow.parquet
    from PIL import Image
    from skimage.data import immunohistochemistry

    pixels = immunohistochemistry()
    Image.fromarray(pixels[:200, :200]).save(tmp_path / "busy.png")
    Image.fromarray(np.full((200, 200, 3), 250, np.uint8)).save(tmp_path / "plain.png")
    names = [tmp_path / "busy.png", tmp_path / "plain.png"]
    config = load_config(sets=[*FAST, "output.probabilities=true", "output.uncertainty=true"])
    console = Console(file=io.StringIO())
    out = tmp_path / "out"
    summary = pipeline.segment(names, tiny_package, out, config=config, console=console)
    assert summary.exit_code == 0
    rows = {row["name"]: row for row in pyarrow.parquet.read_table(out / "summary.parquet").to_pylist()}
    means = {name: row["uncertainty_mean"] for name, row in rows.items()}
    assert sorted(row["uncertainty_rank"] for row in rows.values()) == [1, 2]
    assert rows[max(means, key=lambda name: means[name])]["uncertainty_rank"] == 1
    record = ImageRecord.read(out / "busy")
    assert record is not None and record.figures["attention"]["mean"] == means["busy"]
    assert {"probabilities", "uncertainty"} <= set(record.outputs)
    page = (out / "busy/report.html").read_text()
    assert "Most worth a look" in page and f"{means['busy']:.3f}" in page
    assert Image.open(out / "busy/uncertain.jpg").size == (2 * 256 + 8, 256)
    again = pipeline.segment(names, tiny_package, out, config=load_config(sets=FAST), console=console)
    assert all(image.reused for image in again.images), "maps that are there already are no reason to segment anew"


def test_orientations_are_part_of_the_result_and_of_its_record(run: Any, blots: Draw, tmp_path: Path) -> None:
    path = blots("slide.png")
    plain = run(path).images[0].record
    assert "tta" not in plain.engine and "mean over" not in (tmp_path / "out/slide/report.html").read_text()
    [image] = run(path, sets=("engine.tta=d4",)).images
    assert not image.reused and image.record.key != plain.key and image.record.engine["tta"] == "d4"
    assert image.record.figures["classes"][1]["px"] == INK_PX, "ink is ink from all sides"
    assert "mean over 8 orientations (d4)" in (tmp_path / "out/slide/report.html").read_text()
    assert run(path, sets=("engine.tta=d4",)).images[0].reused


def test_a_mask_for_all_images_may_be_a_uri_or_a_zarr_folder(run: Any, blots: Draw, tmp_path: Path) -> None:
    import zarr

    photo = blots("slide.png")
    with Image.open(photo) as picture:
        mask = np.zeros(picture.size[::-1], np.uint8)
    mask[:10] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    zarr.create_array(tmp_path / "mask.zarr", data=mask, chunks=mask.shape)
    for given in ((tmp_path / "mask.png").as_uri(), str(tmp_path / "mask.zarr")):
        [image] = run(photo, sets=(f"input.mask={given}",)).images
        assert image.record.figures["valid_px"] == mask.sum(), given


def test_labels_go_into_the_source_only_where_asked(run: Any, blots: Draw, ink_package: Path, tmp_path: Path) -> None:
    import zarr
    from ome_zarr.writer import write_image

    photo = blots("slide.png")
    source = tmp_path / "image.zarr"
    pixels = np.moveaxis(np.asarray(Image.open(photo)), -1, 0)
    write_image(np.ascontiguousarray(pixels), zarr.open_group(source, mode="w", zarr_format=3), axes="cyx")
    assert run(source).exit_code == 0 and not (source / "labels").exists()
    asked = ("output.into_source=true",)
    summary = run(source, sets=asked)
    assert summary.exit_code == 0 and not summary.images[0].reused
    found = zarr.open_array(source / "labels/unetpp-ink/0", mode="r")
    assert int((np.asarray(found[:]) == 1).sum()) == INK_PX
    assert run(source, sets=asked).images[0].reused
    (tmp_path / "out").rename(tmp_path / "whole")
    assert run(source, sets=(*asked, "input.region=0,0,20,20")).exit_code == 0  # another output's label in its place
    (tmp_path / "out").rename(tmp_path / "part")
    (tmp_path / "whole").rename(tmp_path / "out")
    assert not run(source, sets=asked).images[0].reused
    assert int((np.asarray(zarr.open_array(source / "labels/unetpp-ink/0", mode="r")[:]) == 1).sum()) == INK_PX
    assert run(source, sets=asked).images[0].reused
    refused = run(photo, sets=asked)
    assert refused.exit_code == 1 and "not written into the source" in str(refused.images[0].warning)
