"""`kill -9` of the driver at random points, then a rerun: the same bytes, and no finished shard is made twice."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from unetpp.segment import SegmentJob, pending
from unetpp_workflows.executors.local import run_local

Prepare = Callable[..., SegmentJob]
Files = Callable[[SegmentJob], dict[str, str]]
Records = Callable[[SegmentJob], dict[str, tuple[int, int]]]

DRIVER = """
import json, sys
from pathlib import Path
from unetpp.segment import prepare_job
from unetpp_workflows.executors.{kind} import run_{kind}

image, out, package, options = json.loads(sys.argv[1])
job = prepare_job(image, Path(out), Path(package), **options)
outcome, = run_{kind}([job], workers=2)
print(json.dumps([outcome.done, outcome.failed]))
"""


def start(kind: str, job: SegmentJob, **options: Any) -> subprocess.Popen[bytes]:
    arguments = json.dumps([job.uri, str(job.out), str(job.package), {"core": 64, "shard": 64, **options}])
    command = [sys.executable, "-c", DRIVER.format(kind=kind), arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_commits(job: SegmentJob, count: int, driver: subprocess.Popen[bytes]) -> None:
    folder = job.out / "commits"
    while len(list(folder.glob("*.json"))) < count:
        if driver.poll() is not None:
            _, errors = driver.communicate()
            pytest.fail(f"the driver ended early: {errors.decode()}")
        time.sleep(0.001)


@pytest.mark.parametrize(("kind", "kills"), [pytest.param("local", 3, marks=pytest.mark.slow), ("ray", 1)])
def test_killed_drivers_lose_nothing(
    prepare: Prepare, hashes: Files, records: Records, kind: str, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, job = prepare("expected", engine="torch"), prepare("killed", engine="torch")
    run_local([expected])
    seed = random.randrange(10**6)  # noqa: S311  # no secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311  # no secret
    done: dict[str, tuple[int, int]] = {}
    for _ in range(kills):
        driver = start(kind, job, engine="torch")
        wait_for_commits(job, min(len(done) + chance.randint(1, 8), 34), driver)
        time.sleep(chance.uniform(0, 0.02))
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        done = records(job) | done
    again = prepare("killed", engine="torch")
    left = {shard.id for shard in pending(again)}
    survived = records(job)
    run_local([again], workers=2)
    assert left == {shard.id for shard in job.plan.shards()} - set(survived) and survived.items() >= done.items()
    assert {shard: stat for shard, stat in records(job).items() if shard in survived} == survived
    assert hashes(job) == hashes(expected)
    assert [path.name for path in job.out.rglob("*") if path.suffix in (".partial", ".tmp", ".new")] == []


@pytest.mark.slow
def test_a_session_of_our_own_keeps_standard_output_clean_and_leaves_nothing(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(engine="torch")
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        driver = start("ray", job, engine="torch")
        wait_for_commits(job, 3, driver)
        family = psutil.Process(driver.pid).children(recursive=True)
        next(process for process in family if "ShardActor" in " ".join(process.cmdline())).kill()
        out, errors = driver.communicate()
        assert list(Path(folder).iterdir()) == [], "Ray's own files are left behind"
    assert driver.returncode == 0, errors.decode()
    assert json.loads(out) == [35, {}] and pending(job) == []
    assert all(line.startswith("(raylet)") for line in plain(errors)), errors.decode()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def plain(output: bytes) -> list[str]:
    """Return the lines of coloured terminal output."""
    return [line for line in re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).splitlines() if line]
