"""What is compiled ahead is all that finishing needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unetpp.finalize.ahead import compile_ahead
from unetpp.segment import ShardWorker, prepare_job

COUNTED = """
import sys
from pathlib import Path
from numba.core import event
from unetpp.finalize import finalize
from unetpp.finalize.ahead import compile_ahead
from unetpp.segment import SegmentJob

counts = [event.RecordingListener() for _ in range(2)]
for compiled, work in zip(counts, (compile_ahead, lambda: finalize(SegmentJob.load(Path(sys.argv[1])))), strict=True):
    event.register("numba:compile", compiled)
    work()
    event.unregister("numba:compile", compiled)
print(*(len(compiled.buffer) for compiled in counts))
"""


def test_a_first_image_is_finished_without_compiling(tmp_path: Path, tiny_package: Path) -> None:
    from skimage.data import immunohistochemistry

    Image.fromarray(immunohistochemistry()[:300, :301]).save(tmp_path / "section.png")
    job = prepare_job(tmp_path / "section.png", tmp_path / "out", tiny_package, core=64, shard=64)
    worker = ShardWorker(job)
    for shard in job.plan.shards():
        worker.run(shard)
    worker.close()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "empty")}
    command = [sys.executable, "-c", COUNTED, str(job.out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    ahead, later = map(int, done.stdout.split())
    assert ahead > 20 and later == 0


def test_it_ends_when_the_call_is_given_up() -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        compile_ahead(check)
    assert len(calls) == 2


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compile_ahead()
    assert list(tmp_path.iterdir()) == []
