"""An output folder that a run is writing is read, and not repaired; damage in one image does not hide the others."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unetpp.lock import FolderLock
from unetpp_workflows.cli import app
from unetpp_workflows.config import load_config
from unetpp_workflows.lease import Lease
from unetpp_workflows.pipeline import segment

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=32", "executor.workers=2")


def run(*command: object, columns: int = 200) -> Any:
    return CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": str(columns)})


def content(output: Path) -> dict[str, bytes]:
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.fixture
def output(ink_package: Path, blots: Callable[..., Path], tmp_path: Path) -> Path:
    """Two finished images of twelve shards each; the first one lacks 0.1, as if that were being made."""
    done = segment([blots("a.png"), blots("b.png")], ink_package, tmp_path / "out", config=load_config(sets=FAST))
    assert done.exit_code == 0
    (tmp_path / "out/a/commits/0.1.json").unlink()
    (tmp_path / "out/a/labels.ome.zarr/classes/0/c/0/1").unlink()
    return tmp_path / "out"


@pytest.mark.parametrize("named", ["", "a"])
def test_a_running_run_is_not_repaired(output: Path, named: str) -> None:
    with Lease(output):
        before = content(output)
        assert run("verify", output / named).exit_code == 1
        refused = run("verify", output / named, "--repair")
        assert refused.exit_code == 1 and "is being written by process" in refused.stderr
        assert content(output) == before
    with FolderLock(output / "a", exclusive=False):  # a worker that its driver has left behind
        before = content(output)
        refused = run("verify", output / named, "--repair")
        assert refused.exit_code == 1 and "is in use by another run" in refused.stderr
        assert content(output) == before
    repaired = run("verify", output / named, "--repair")
    assert repaired.exit_code == 1 and "a: shard 0.1: " in repaired.stdout
    assert not (output / "a/record.json").exists() and not list(output.parent.rglob(".lease*"))
    assert (output / "b/record.json").exists()


@pytest.mark.parametrize("record", ["", "{"])
def test_shards_without_a_finished_image_are_not_whole(output: Path, record: str) -> None:
    """A run that is killed as it finishes an image leaves all shards and no record."""
    (output / "b/record.json").unlink()
    if record:
        (output / "b/record.json").write_text(record)
    found = run("verify", output / "b")
    assert found.exit_code == 1 and ("damaged" if record else "b: not finished") in found.stdout


def test_pages_are_drawn_beside_an_image_whose_labels_are_damaged(output: Path) -> None:
    victim = output / "b/labels.ome.zarr/classes/0/c/0/0"
    victim.write_bytes(victim.read_bytes()[:-3])
    pages = [output / name / "report.html" for name in ("a", "b", ".")]
    for page in pages:
        page.unlink(missing_ok=True)
    drawn = run("report", output)
    assert drawn.exit_code == 1 and drawn.exception.code == 1 and all(page.is_file() for page in pages)
    first, second, every = drawn.stdout.splitlines()
    assert first == str(pages[0]) and second.startswith(f"{output}/b/labels.ome.zarr is damaged (")
    assert every.startswith(f"{output}/report.html is drawn without what is damaged: ")
    assert ["labels.ome.zarr is damaged (" in page.read_text() for page in pages] == [False, True, True]
    assert pages[2].read_text().count('src="data:image/jpeg;base64,') == 2
    assert run("verify", output / "b").exit_code == 1  # what the line says to run finds it


def test_an_image_that_never_was_one_can_be_forgotten(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    inputs = [blots("a.png"), tmp_path / "mistyped.png"]
    assert segment(inputs, ink_package, tmp_path / "out", config=load_config(sets=FAST)).exit_code == 1
    found = run("verify", tmp_path / "out")
    assert found.exit_code == 1 and "mistyped: failed: " in found.stdout and "forget it with --repair" in found.stdout
    assert "mistyped.png" in found.stdout and "a: whole" in found.stdout
    assert "forgotten" in run("verify", tmp_path / "out", "--repair").stdout
    assert run("verify", tmp_path / "out").exit_code == 0
    assert "mistyped" not in run("status", tmp_path / "out").stdout


def test_a_narrow_terminal_cuts_off_neither_names_nor_paths(tmp_path: Path, ink_package: Path) -> None:
    image = tmp_path / ("scanned_again_" * 3) / f"{'slide_' * 8}1.png"
    segment([image], ink_package, tmp_path / "out", config=load_config(sets=FAST))
    rows = run("status", tmp_path / "out", columns=60).stdout.splitlines()[1:-1]
    note = rows[0].index("/")
    assert "".join(row[:note].split()[0] for row in rows if row[0] != " ") == image.stem
    assert str(image) in "".join(row[note:].strip() for row in rows)


def test_a_result_that_was_half_deleted_for_another_is_not_taken_for_done(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    out, image = tmp_path / "out", blots("a.png")
    first = load_config(sets=(*FAST, "output.formats=[]"))
    assert segment([image], ink_package, out, config=first).exit_code == 0
    before = content(out / "a/labels.ome.zarr")
    hindrance = out / "a/.commits.discarded"  # the deletion stops there
    hindrance.touch()
    other = segment([image], ink_package, out, config=load_config(sets=(*FAST, "tiling.core=64")))
    assert other.exit_code == 1 and "cannot write" in str(other.images[0].message)
    assert '"status": "failed"' in run("status", out, "--json").stdout
    hindrance.unlink()
    again = segment([image], ink_package, out, config=first)
    assert again.exit_code == 0 and not again.images[0].reused
    assert run("verify", out, "--audit").exit_code == 0 and content(out / "a/labels.ome.zarr") == before


def test_a_repair_that_was_killed_is_not_taken_for_done(
    ink_package: Path, blots: Callable[..., Path], output: Path
) -> None:
    whole = {str(path): path.read_bytes() for path in (output / "b/labels.ome.zarr").rglob("c/*/*") if path.is_file()}
    for column in (0, 1):
        (output / f"b/labels.ome.zarr/classes/0/c/0/{column}").write_bytes(b"torn")
    killed = (
        "import os, signal, sys; from unetpp_workflows.cli import app\n"
        "left = ['b', 'b']\n"
        "def at_the_second(event, args):\n"
        "    if event == 'os.remove' and '/b/' in str(args[0]) and left.pop() and not left:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(at_the_second)\n"
        "app(sys.argv[1:])"
    )
    command = [sys.executable, "-c", killed, "verify", str(output), "--repair"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == -signal.SIGKILL
    assert not (output / "b/record.json").exists()
    assert run("verify", output, "--repair").exit_code == 1
    done = segment([blots("a.png"), blots("b.png")], ink_package, output, config=load_config(sets=FAST))
    assert done.exit_code == 0 and run("verify", output, "--audit").exit_code == 0
    assert all(Path(path).read_bytes() == content for path, content in whole.items())
