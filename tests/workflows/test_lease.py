"""One run at a time writes an output folder: a living holder is named, a dead or expired one is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.disk import fill
from unetpp.errors import StoreError
from unetpp_workflows.lease import LEASE, Lease

HOLDER = """
import sys, time
from pathlib import Path
from unetpp_workflows.lease import Lease

with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(output: Path, *prefix: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [*prefix, sys.executable, "-c", HOLDER, str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def change(output: Path, **facts: Any) -> None:
    before = json.loads((output / LEASE).read_text())
    (output / LEASE).write_text(json.dumps({**before, **facts}))


def expires(output: Path) -> float:
    return float(json.loads((output / LEASE).read_text())["expires"])


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Wait; a busy machine may be late."""
    late = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < late
        time.sleep(0.02)


def fault(lease: Lease) -> str:
    try:
        lease.check()
    except StoreError as error:
        return str(error)
    return ""


def test_a_living_holder_is_named_and_a_killed_one_replaced_at_once(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with (
            pytest.raises(StoreError, match=rf"being written by process {process.pid} on .* since 20"),
            Lease(tmp_path),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Lease(tmp_path) as lease:
            lease.check()
        assert not (tmp_path / LEASE).exists()
    finally:
        end(process)


def test_a_killed_holder_is_gone_before_its_parent_takes_note_of_that(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        process.send_signal(signal.SIGKILL)
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        with Lease(tmp_path) as lease:
            lease.check()
    finally:
        end(process)


def test_a_living_holder_in_a_container_of_this_host_is_not_taken_for_dead(tmp_path: Path) -> None:
    container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*container, "true"], check=False).returncode != 0:
        pytest.skip("making a namespace of processes needs root and unshare")
    process = hold(tmp_path, *container)
    try:
        # There it is number 1, as another process is here.
        with pytest.raises(StoreError, match=r"being written by process 1 on"), Lease(tmp_path):
            pass
    finally:
        end(process)


def test_a_holder_elsewhere_is_replaced_when_its_lease_expires(tmp_path: Path) -> None:
    with Lease(tmp_path):
        facts = json.loads((tmp_path / LEASE).read_text())
    facts |= {"host": "another-machine", "pid": 1, "id": "other"}
    (tmp_path / LEASE).write_text(json.dumps({**facts, "expires": time.time() + 30}))
    with pytest.raises(StoreError, match=r"process 1 on another-machine .* wait (29|30) s"), Lease(tmp_path):
        pass
    change(tmp_path, expires=time.time() - 1)
    with Lease(tmp_path):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()


def test_a_lease_that_does_not_say_where_its_process_number_counts_is_waited_for(tmp_path: Path) -> None:
    with Lease(tmp_path):
        facts = json.loads((tmp_path / LEASE).read_text())
    old = {name: facts[name] for name in ("id", "host", "pid", "since", "expires")}
    (tmp_path / LEASE).write_text(json.dumps({**old, "process_started": 1.0}))
    with pytest.raises(StoreError, match="being written by process"), Lease(tmp_path):
        pass
    change(tmp_path, expires=time.time() - 1)
    with Lease(tmp_path):
        pass


def test_a_reused_process_number_is_no_holder(tmp_path: Path) -> None:
    with Lease(tmp_path):
        facts = (tmp_path / LEASE).read_text()
    (tmp_path / LEASE).write_text(facts)
    change(tmp_path, process_began=1, id="other")
    with Lease(tmp_path):
        pass


def test_a_clock_that_is_set_makes_no_other_process_of_a_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(tmp_path):
        began = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: began(process) + 2.0)  # of the clock
        with pytest.raises(StoreError, match="being written by process"), Lease(tmp_path):
            pass


def test_a_holder_renews_and_learns_that_it_was_replaced(tmp_path: Path) -> None:
    def replaced() -> bool:
        change(tmp_path, id="other")  # again and again: it may just be renewing
        return "taken over by another run" in fault(lease)

    with Lease(tmp_path, seconds=2) as lease:
        first = expires(tmp_path)
        until(lambda: expires(tmp_path) > first)
        assert not fault(lease)
        until(replaced)
    assert json.loads((tmp_path / LEASE).read_text())["id"] == "other"


def test_a_holder_that_cannot_renew_tries_again_and_stops_before_others_may_start(
    small_disk: Callable[[int], Path],
) -> None:
    disk, safe = small_disk(64), 0.0

    def stopped() -> bool:
        nonlocal safe
        moment, why = time.time(), fault(lease)
        safe = safe if why else moment
        return "No space left on device; free disk space" in why

    with Lease(disk, seconds=4) as lease:
        ballast = fill(disk)
        until(stopped)
        assert 0 < safe < expires(disk)
        ballast.unlink()
        until(lambda: not fault(lease))
        assert expires(disk) > time.time()


def test_a_torn_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text('{"id": "x"')
    with Lease(tmp_path):
        pass
