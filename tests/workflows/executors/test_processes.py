"""Calls in processes of this machine: results and errors come back, a call can be stopped, none outlives its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from unetpp.errors import EngineError, OutputError
from unetpp.finalize import finalize
from unetpp.segment import SegmentJob
from unetpp_workflows.executors.local import run_local
from unetpp_workflows.executors.processes import Processes

Prepare = Callable[..., SegmentJob]
Files = Callable[[SegmentJob], dict[str, str]]


def finish(job: SegmentJob) -> int:
    """Finalize a job; returns the process's number."""
    finalize(job)
    return os.getpid()


def act(how: str, folder: Path) -> int:
    """Do what a test wants, having left the process's number in the folder."""
    (folder / how).write_text(str(os.getpid()))
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs":
        time.sleep(300)
    if how == "ours":
        raise OutputError("disk full")
    if how == "another's":
        raise OSError("no room\nat all")
    return os.getpid()


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ends(process: int) -> bool:
    """Wait until a process is gone."""
    until = time.monotonic() + 30
    while is_alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not is_alive(process)


def started(path: Path) -> int:
    """Wait for the number that a process leaves."""
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    return int(path.read_text())


def test_images_are_finished_as_they_are_here(prepare: Prepare, hashes: Files) -> None:
    here, there, later = prepare("here"), prepare("there"), prepare("later")
    run_local([here, there, later], workers=2)
    figures = finalize(here)
    with Processes(finish) as processes:
        first, second = (processes.call(job, stop=threading.Event()) for job in (there, later))
        assert first == second != os.getpid()  # an idle process is used again
    assert ends(first)
    for job in (there, later):
        assert finalize(job) == figures and hashes(job) == hashes(here)
        assert (job.out / "polygons.geojson").read_bytes() == (here.out / "polygons.geojson").read_bytes()


def test_calls_at_once_have_a_process_each(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    with Processes(act) as processes, ThreadPoolExecutor(3) as pool:
        for folder in folders:
            folder.mkdir()
            pool.submit(processes.call, "hangs", folder, stop=(stop := threading.Event()))
        numbers = {started(folder / "hangs") for folder in folders}
        assert len(numbers) == 3
        for number in numbers:
            os.kill(number, signal.SIGKILL)
        stop.set()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("ours", OutputError, "^disk full$"),
        ("another's", EngineError, "^in a process of this machine: OSError: no room$"),
        ("dies", EngineError, "^a process of this machine ended with -9; is its memory too small"),
    ],
)
def test_what_fails_is_told_and_the_next_call_works(
    tmp_path: Path, how: str, error: type[Exception], words: str
) -> None:
    with Processes(act) as processes:
        with pytest.raises(error, match=words):
            processes.call(how, tmp_path, stop=threading.Event())
        assert processes.call("works", tmp_path, stop=threading.Event()) == int((tmp_path / "works").read_text())


def test_a_call_can_be_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    with Processes(act) as processes, ThreadPoolExecutor(1) as pool:
        call = pool.submit(processes.call, "hangs", tmp_path, stop=stop)
        process = started(tmp_path / "hangs")
        stop.set()
        with pytest.raises(CancelledError):
            call.result(30)
    assert ends(process)


SCRIPT = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_processes import act
from unetpp_workflows.executors.processes import Processes
with Processes(act) as processes:  # no guard: what started this again would never end
    print(processes.call("works", Path(sys.argv[2]), stop=threading.Event()), flush=True)
    processes.call("hangs", Path(sys.argv[2]), stop=threading.Event())
"""


def test_a_killed_script_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, Path(__file__).parent, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        process = started(tmp_path / "hangs")
        caller.kill()
        assert caller.stdout is not None
        assert caller.stdout.read().split() == [str(process)] == [(tmp_path / "works").read_text()]
    assert ends(process)
