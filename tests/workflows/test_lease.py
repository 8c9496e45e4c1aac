"""One run at a time writes an output folder: a living holder is named, a dead or expired one is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

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


def hold(output: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", HOLDER, str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def change(output: Path, **facts: Any) -> None:
    before = json.loads((output / LEASE).read_text())
    (output / LEASE).write_text(json.dumps({**before, **facts}))


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
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


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


def test_a_reused_process_number_is_no_holder(tmp_path: Path) -> None:
    with Lease(tmp_path):
        facts = (tmp_path / LEASE).read_text()
    (tmp_path / LEASE).write_text(facts)
    change(tmp_path, process_started=1.0, id="other")
    with Lease(tmp_path):
        pass


def test_a_holder_renews_and_learns_that_it_was_replaced(tmp_path: Path) -> None:
    def lost(lease: Lease) -> bool:
        try:
            lease.check()
        except StoreError as error:
            assert "taken over by another run" in str(error)
            return True
        return False

    late = time.monotonic() + 60  # a busy machine may renew late, or just while the file is changed
    with Lease(tmp_path, seconds=0.2) as lease:
        first = json.loads((tmp_path / LEASE).read_text())["expires"]
        while json.loads((tmp_path / LEASE).read_text())["expires"] <= first and time.monotonic() < late:
            time.sleep(0.02)
        assert json.loads((tmp_path / LEASE).read_text())["expires"] > first and not lost(lease)
        while not lost(lease) and time.monotonic() < late:
            change(tmp_path, id="other")
            time.sleep(0.3)
        assert lost(lease)
    assert json.loads((tmp_path / LEASE).read_text())["id"] == "other"


def test_a_torn_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text('{"id": "x"')
    with Lease(tmp_path):
        pass
