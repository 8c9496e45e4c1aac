"""`unetpp gc` deletes what a dead run left, nothing that is finished, and nothing under a living run."""

from __future__ import annotations

import io
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from unetpp.durable import discard_folder
from unetpp_workflows import pipeline
from unetpp_workflows.cli import app
from unetpp_workflows.config import load_config
from unetpp_workflows.lease import LEASE, Lease

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=32", "executor.workers=2")


@pytest.fixture
def output(ink_package: Path, blots: Callable[..., Path], tmp_path: Path) -> Path:
    """The output folder of a finished run."""
    config = load_config(sets=FAST)
    console = Console(file=io.StringIO())
    pipeline.segment([blots("a.png"), blots("b.png")], ink_package, tmp_path / "out", config=config, console=console)
    return tmp_path / "out"


def put_litter(output: Path) -> list[Path]:
    """Put what kills at several points leave behind."""
    image = output / "a"
    token = "0123456789abcdef" * 2
    files = [
        output / ".summary.parquet.tmp",
        output / ".gone.discarded/record.json",
        image / ".job.json.tmp",
        image / ".labels.ome.zarr.new/zarr.json",
        image / ".commits.discarded/0.0.json",
        image / "commits/.0.0.json.tmp",
        image / "labels.ome.zarr/classes/0/c/0/0.0123abcd.partial",
        image / "finalize/work/polygons.gpkg",
        image / "finalize/.cog.json.tmp",
        image / f"finalize/{token}.pyramid.jsonl",
        image / f"finalize/{token}.pieces/0.0.arrays",
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"litter")
    return files


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def gc(output: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["gc", str(output), *options])


def test_litter_is_deleted_and_all_that_is_finished_stays(output: Path) -> None:
    before = content(output)
    nothing = gc(output)
    assert (nothing.exit_code, "0 leftover(s), 0 bytes" in nothing.stdout) == (0, True)
    files = put_litter(output)
    littered = content(output)
    dry = gc(output, "--dry-run")
    assert content(output) == littered and len(littered) == len(before) + len(files)
    done = gc(output)
    assert (dry.exit_code, done.exit_code) == (0, 0)
    assert dry.stdout.replace("would delete", "deleted").splitlines() == done.stdout.splitlines()
    assert f"{len(files)} leftover(s), {6 * len(files)} bytes" in done.stdout
    assert content(output) == before
    assert not [path for path in output.rglob("*") if path.name in ("work", ".gone.discarded")]
    verified = CliRunner().invoke(app, ["verify", str(output)])
    assert verified.exit_code == 0, verified.stdout


def test_what_a_shadow_left_is_deleted_too_and_none_of_a_running_one(output: Path) -> None:
    shadow = output / ".shadow" / ("ab" * 8)
    shutil.copytree(output, shadow)
    (output / ".shadow/cd").mkdir()  # it ended before its first image
    (output / ".shadow/cd/.lock").touch()
    before = content(output)
    files = [*put_litter(output), *put_litter(shadow), output / ".shadow/cd/.summary.csv.tmp"]
    files[-1].write_bytes(b"litter")
    with Lease(shadow):
        refused = gc(output)
        assert refused.exit_code == 1 and f"{shadow} is being written by" in refused.stderr
        assert all(path.exists() for path in files)
    dry, done = gc(output, "--dry-run"), gc(output)
    assert dry.stdout.replace("would delete", "deleted") == done.stdout
    assert f"{len(files)} leftover(s), {6 * len(files)} bytes" in done.stdout
    assert content(output) == before


@pytest.mark.parametrize("name", ["record.json", "job.json"])
def test_what_another_version_wrote_is_neither_cleaned_nor_repaired(output: Path, name: str) -> None:
    file = output / "b" / name
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    files = [*put_litter(output), output / ".summary.csv.tmp"]
    files[-1].write_bytes(b"litter")
    shard = next(path for path in (output / "b/labels.ome.zarr/classes/0/c").rglob("*") if path.is_file())
    shard.write_bytes(b"of a layout that this version does not know")
    (output / "b/.record.json.tmp").write_bytes(b"litter, as far as this version knows")
    before = content(output / "b")
    for options in ((), ("--repair",)):
        found = CliRunner().invoke(app, ["verify", *options, str(output)])
        assert found.exit_code == 1 and f"{file}" in found.output and "another version of unetpp" in found.output
        assert "a: whole" in found.output and "damaged" not in found.output
    for options in (("--dry-run",), ()):
        assert files[-1].exists()
        found = gc(output, *options)
        assert found.exit_code == 0 and f"left alone: {file}" in found.stdout and "another version" in found.stdout
        alone = CliRunner().invoke(app, ["gc", *options, str(output / "b")])
        assert alone.exit_code == 0 and "left alone" in alone.output and "0 leftover(s)" in alone.output
    assert content(output / "b") == before and not any(
        path.exists() for path in files if output / "b" not in path.parents
    )


def test_a_running_run_is_left_alone(output: Path) -> None:
    files = put_litter(output)
    with Lease(output):
        refused = gc(output)
        assert refused.exit_code == 1 and "is being written by process" in refused.stderr
        assert ".lease.json" not in gc(output, "--dry-run").stdout
        assert all(path.exists() for path in files)
    assert gc(output).exit_code == 0
    assert not any(path.exists() for path in files)


def test_one_image_of_a_running_run_is_left_alone(output: Path) -> None:
    put_litter(output)
    with Lease(output):
        before = content(output)
        refused = CliRunner().invoke(app, ["gc", str(output / "a")])
        assert refused.exit_code == 1 and "is being written by" in refused.stderr and content(output) == before
    assert CliRunner().invoke(app, ["gc", str(output / "a")]).exit_code == 0
    assert not (output / "a/finalize/work").exists() and not list(output.rglob(LEASE))
    assert (output / ".summary.parquet.tmp").exists()


@pytest.mark.parametrize("left", [-1, 60])
def test_an_expired_lease_of_another_machine_is_litter_and_a_valid_one_is_not(output: Path, left: int) -> None:
    facts = {"id": "x", "host": f"not-{socket.gethostname()}", "pid": 1, "since": "2026", "expires": time.time() + left}
    (output / LEASE).write_text(json.dumps(facts))
    assert (LEASE in gc(output, "--dry-run").stdout) == (left < 0)
    assert gc(output).exit_code == (0 if left < 0 else 1)
    assert (output / LEASE).exists() == (left > 0)


def test_a_folder_that_was_being_deleted_is_litter_as_a_whole(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **more: None)  # killed behind the renaming
        discard_folder(output / "b")
    assert (output / ".b.discarded/record.json").exists()
    assert gc(output).exit_code == 0
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["a", "logs"]


def test_a_folder_without_images_is_wrong_usage(tmp_path: Path) -> None:
    assert gc(tmp_path / "none").exit_code == 2
