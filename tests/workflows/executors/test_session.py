"""A session with Ray and calls through it: late starts, odd folders, dead and stopped calls, errors told in one line.

A late process cannot be caused at will, so `ray.init` is replaced for that one test; every other test starts Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import ray

from unetpp.errors import EngineError, OutputError
from unetpp.finalize import finalize
from unetpp.lock import FolderLock
from unetpp.segment import SegmentJob
from unetpp_workflows.executors import session
from unetpp_workflows.executors.local import run_local
from unetpp_workflows.executors.session import on_cluster, ray_session

Prepare = Callable[..., SegmentJob]
Files = Callable[[SegmentJob], dict[str, str]]
shared_session = pytest.mark.usefixtures("ray_on_this_machine")


@pytest.mark.parametrize("late", [0, 2, 99])
def test_a_late_start_is_tried_again_and_given_up_in_one_line(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"init": 0, "shutdown": 0}

    def init(**_: object) -> None:
        calls["init"] += 1
        if calls["init"] <= late:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may keep a session in this process
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.update(shutdown=calls["shutdown"] + 1))
    if late < 99:
        with ray_session(None, cpus=1):
            assert calls == {"init": late + 1, "shutdown": late}
        assert calls["shutdown"] == late + 1
    else:
        with pytest.raises(EngineError, match="use --executor local"), ray_session(None, cpus=1):
            pass
        assert calls["init"] == calls["shutdown"] == 4


BUSY = """
import ray
from ray.cluster_utils import Cluster
from unetpp_workflows.executors.session import ray_session

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
with ray_session(cluster.address, cpus=1):
    pass
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
with ray_session(cluster.address, cpus=1):
    pass
cluster.shutdown()
"""


def test_a_cluster_without_a_free_cpu_is_told_of() -> None:
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", BUSY]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(" has ")[2] for line in done.stderr.splitlines() if "the Ray cluster" in line] == [
        "no free CPU (of 0): waiting for one"
    ]


@pytest.mark.parametrize("by_environment", [False, True])
def test_an_address_where_nobody_listens_is_told_of_in_time(
    by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may keep a session in this process
    monkeypatch.setattr(session, "_LISTENS_WITHIN_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    if by_environment:
        monkeypatch.setenv("RAY_ADDRESS", nobody)
    before = time.monotonic()
    with (
        pytest.raises(EngineError, match=r"no Ray cluster answers at .* refused.*start the cluster"),
        ray_session("auto" if by_environment else nobody, cpus=1),
    ):
        pass
    assert time.monotonic() - before < 20


def test_a_machine_without_loopback_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(EngineError, match="use the executor local"):
        session._check_loopback()


IN_AN_ENVIRONMENT = """
import os
import ray
from unetpp_workflows.executors.session import ray_session
with ray_session(None, cpus=1):
    task = ray.remote(num_cpus=0, runtime_env={"env_vars": {"COLOUR": "blue"}})(lambda: os.environ["COLOUR"])
    print(ray.get(task.remote(), timeout=100))
"""


def test_workers_start_from_a_folder_with_a_space(tmp_path: Path) -> None:
    """Ray Train gives its workers an environment of their own, which Ray sets up in a shell."""
    venv.EnvBuilder(symlinks=True).create(tmp_path / "my environment")
    python = tmp_path / "my environment/bin/python"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [python, "-c", IN_AN_ENVIRONMENT], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert ended.stdout.split() == ["blue"], ended.stderr


def finish(job: SegmentJob) -> int:
    """Finalize a job; returns the process's number."""
    finalize(job)
    return os.getpid()


def end(how: str, folder: Path) -> None:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs":
        (folder / "begun").touch()
        time.sleep(300)
    raise OutputError("disk full") if how == "ours" else OSError("no room\nat all")


@shared_session
def test_a_clusters_cpus_do_any_work(prepare: Prepare, hashes: Files) -> None:
    here, there = prepare("here"), prepare("there")
    run_local([here, there], workers=2)
    figures = finalize(here)
    lock = FolderLock(there.out, exclusive=False)  # as a worker that is about to end holds it
    threading.Timer(2, lock.close).start()
    assert on_cluster(finish, there, stop=threading.Event()) != os.getpid()
    assert finalize(there) == figures and hashes(there) == hashes(here)
    assert (there.out / "polygons.geojson").read_bytes() == (here.out / "polygons.geojson").read_bytes()


@shared_session
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("ours", OutputError, "^disk full$"),
        ("another's", EngineError, "^on the cluster: OSError: no room$"),
        ("dies", EngineError, "^on the cluster: "),
    ],
)
def test_what_fails_on_the_cluster_is_told(tmp_path: Path, how: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        on_cluster(end, how, tmp_path, stop=threading.Event())


@shared_session
def test_work_on_the_cluster_can_be_stopped(tmp_path: Path) -> None:
    stop = threading.Event()

    def stop_when_begun() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.1)
        stop.set()

    threading.Thread(target=stop_when_begun, daemon=True).start()
    with pytest.raises(CancelledError):
        on_cluster(end, "hangs", tmp_path, stop=stop)
