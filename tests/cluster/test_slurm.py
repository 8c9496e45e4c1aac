"""The sbatch files on a real Slurm: jobs in parts, requeued in the middle, trained across their time limit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.files import CLUSTER
from tests.cluster.slurm import Slurm, slurm
from unetpp_workflows.config import load_config
from unetpp_workflows.lease import Lease
from unetpp_workflows.pipeline import segment
from unetpp_workflows.record import ImageRecord

FOLDER = CLUSTER / "slurm"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm whose jobs find `unetpp` in their path."""
    home = tmp_path_factory.mktemp("slurm")
    program = home / "bin" / "unetpp"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unetpp_workflows "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    source_roots = ":".join(part for part in sys.path if part)
    with slurm(
        {**os.environ, "PATH": path, "PYTHONPATH": source_roots, "UNETPP_HOME": str(home / "unetpp")}
    ) as running:
        yield running


def hashes(output: Path) -> dict[str, str]:
    files = [file for file in output.glob("*/labels.ome.zarr/**/*") if file.is_file()] + [*output.glob("*/*.geojson")]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def first_commit(output: Path, seconds: float = 300) -> dict[Path, int]:
    """Wait for a commit record and return all that are there with their times."""
    end = time.monotonic() + seconds
    while not (found := {file: file.stat().st_mtime_ns for file in output.glob("*/commits/*.json")}):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.fixture
def archive(data_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (slide,) = data_dir.rglob("CMU-1-Small-Region.svs")
    shutil.copy(slide, folder / "slide.svs")
    return folder


def test_a_small_archive_goes_through_the_chain(cluster: Slurm, archive: Path, tmp_path: Path) -> None:
    import openslide
    from PIL import Image

    with openslide.OpenSlide(archive / "slide.svs") as slide:
        for name, left in (("left", 300), ("right", 900)):
            slide.read_region((left, 900), 0, (400, 400)).convert("RGB").save(tmp_path / f"{name}.png")
    assert Image.open(tmp_path / "left.png").size == (400, 400)
    rows = [f"{tmp_path}/{name}.png,0.5um" for name in ("left", "right")]
    (tmp_path / "archive.csv").write_text("\n".join(["uri,spacing", *rows]) + "\n")
    printed = cluster.run(
        "sh", FOLDER / "array.sh", "2", tmp_path / "archive.csv", "nuclei", tmp_path / "out",
        f"--output={tmp_path}/%x-%A_%a.txt",
    )  # fmt: skip
    first, array, last = printed.split()
    for number in (f"{first}_0", f"{array}_1", f"{array}_2", last):
        assert cluster.wait(number)["JobState"] == "COMPLETED", _logs(tmp_path)
    for name in ("left", "right"):
        record = ImageRecord.read(tmp_path / "out" / name)
        assert record is not None and record.status == "done" and record.shards["valid_px"] == 400 * 400
    parts = [file.read_text() for file in sorted(tmp_path.glob("unetpp-part*.txt"))]
    assert "2 images prepared for 2 parts" in parts[0]
    assert sum("part 1/2" in text or "part 2/2" in text for text in parts) == 2


@pytest.mark.slow
def test_a_job_waits_for_the_lease_of_one_that_was_killed_on_another_node(cluster: Slurm, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (400, 400), (200, 180, 200)).save(tmp_path / "flat.png")
    (tmp_path / "archive.csv").write_text(f"uri,spacing\n{tmp_path}/flat.png,0.5um\n")
    output = tmp_path / "out"
    output.mkdir()

    def ran(killed: str, *command: str | Path) -> dict[str, str]:
        """Run a job while the folder has a lease that nobody renews."""
        with Lease(output, part=killed or None):
            (lease,) = output.glob(".lease*.json")
            facts = json.loads(lease.read_text())
        facts |= {"host": "another-node", "expires": time.time() + 20}
        lease.write_text(json.dumps(facts, indent=1) + "\n")
        number = cluster.run("sbatch", "--parsable", f"--output={tmp_path}/%x.txt", *command)
        return cluster.wait(number)

    first = ran("", "--array=0", FOLDER / "segment-array.sbatch", tmp_path / "archive.csv", "nuclei", output, "1")
    assert first["JobState"] == "COMPLETED", _logs(tmp_path)
    last = ran("1-of-1", FOLDER / "finish.sbatch", tmp_path / "archive.csv", "nuclei", output)
    assert last["JobState"] == "COMPLETED", _logs(tmp_path)
    record = ImageRecord.read(output / "flat")
    assert record is not None and record.status == "done"


@pytest.mark.slow
def test_an_array_of_parts_requeued_in_the_middle_is_the_whole(cluster: Slurm, archive: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    printed = cluster.run(
        "sh", FOLDER / "array.sh", "2", archive, "nuclei", output, f"--output={tmp_path}/%x-%A_%a.txt"
    )
    first, array, last = printed.split()
    assert cluster.wait(f"{first}_0")["JobState"] == "COMPLETED", _logs(tmp_path)
    before = first_commit(output)
    running = [f"{array}_{task}" for task in (1, 2) if cluster.job(f"{array}_{task}")["JobState"] == "RUNNING"]
    cluster.requeue(running[0])
    for task in (1, 2):
        assert cluster.wait(f"{array}_{task}")["JobState"] == "COMPLETED", _logs(tmp_path)
    assert cluster.job(running[0])["Restarts"] == "1"
    assert cluster.wait(last)["JobState"] == "COMPLETED", _logs(tmp_path)
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a committed shard was computed again"
    record = ImageRecord.read(output / "slide")
    assert record is not None and record.status == "done" and record.shards["committed"] == record.shards["total"] > 1
    config = load_config(options={"tracking.enabled": False})
    assert segment([archive], "nuclei", whole, config=config).exit_code == 0
    assert hashes(output) == hashes(whole)


@pytest.mark.slow
def test_one_job_segments_with_a_ray_of_its_own(cluster: Slurm, archive: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    number = cluster.run(
        "sbatch", "--parsable", "--nodes=1", f"--cpus-per-task={os.cpu_count()}", f"--output={tmp_path}/segment.txt",
        FOLDER / "segment.sbatch", archive, "nuclei", output,
    )  # fmt: skip
    assert cluster.wait(number, 900)["JobState"] == "COMPLETED", _logs(tmp_path)
    record = ImageRecord.read(output / "slide")
    assert record is not None and record.status == "done" and record.executor["kind"] == "ray"
    config = load_config(options={"tracking.enabled": False})
    assert segment([archive], "nuclei", whole, config=config).exit_code == 0
    assert hashes(output) == hashes(whole)


@pytest.mark.slow
def test_a_night_queues_the_next_one_and_ends(cluster: Slurm, archive: Path, tmp_path: Path) -> None:
    register = "--wrap=unetpp models register nuclei --alias champion"
    number = cluster.run("sbatch", "--parsable", f"--output={tmp_path}/register.txt", register)
    assert cluster.wait(number)["JobState"] == "COMPLETED", _logs(tmp_path)
    config, output = tmp_path / "nightly.toml", tmp_path / "out"
    config.write_text(f'archive = ["{archive}"]\noutput = "{output}"\nmodel = "nuclei"\n')
    number = cluster.run(
        "sbatch", "--parsable", "--cpus-per-task=1", f"--output={tmp_path}/night.txt", FOLDER / "nightly.sbatch", config
    )
    assert cluster.wait(number, 900)["JobState"] == "COMPLETED", _logs(tmp_path)
    record = ImageRecord.read(output / "slide")
    assert record is not None and record.status == "done"
    assert (output / "nightly" / "ledger.json").is_file()
    waiting = cluster.run("squeue", "--noheader", "--format=%j %T %S").splitlines()
    assert [line.split()[:2] for line in waiting] == [["unetpp-nightly", "PENDING"]], waiting
    cluster.run("scancel", "--name=unetpp-nightly")


@pytest.mark.slow
def test_a_training_out_of_time_queues_itself_again(cluster: Slurm, tmp_path: Path) -> None:
    seed, output = tmp_path / "seed", tmp_path / "run"
    # `smoke` draws its own images; a training that stops at once leaves the store of them.
    first = f"unetpp train smoke --output {seed} --minutes 0 --no-register || [ $? -eq 75 ]"
    prepare = cluster.run("sbatch", "--parsable", f"--output={tmp_path}/prepare.txt", f"--wrap={first}")
    assert cluster.wait(prepare)["JobState"] == "COMPLETED", _logs(tmp_path)
    store = seed / "data.zarr"
    number = cluster.run(
        "sbatch", "--parsable", "--cpus-per-task=1", "--export=ALL,UNETPP_MINUTES=0.1",
        f"--output={tmp_path}/train.txt", FOLDER / "train.sbatch", "smoke", store, output,
    )  # fmt: skip
    for _ in range(60):
        end = time.monotonic() + 300
        while (facts := cluster.job(number))["JobState"] in ("RUNNING", "COMPLETING") and time.monotonic() < end:
            time.sleep(0.2)
        if facts["JobState"] == "COMPLETED":
            break
        cluster.start_now(number)
        time.sleep(1)
    assert facts["JobState"] == "COMPLETED", _logs(tmp_path)
    assert int(facts["Restarts"]) >= 1
    assert (output / "model.json").exists()


def _logs(folder: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in sorted(folder.glob("*.txt")))
