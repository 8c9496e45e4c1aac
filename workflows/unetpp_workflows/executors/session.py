"""Opens sessions with Ray, on this machine or on a cluster, and calls functions there; knows no image and no shard."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, wait
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from unetpp.errors import EngineError, UnetppError, one_line
from unetpp_workflows.machine import return_freed_memory

Value = TypeVar("Value")
_OBJECT_STORE_BYTES = 100 * 2**20
_STOPS_WITHIN_S = 1.0
_SLIVER = 0.01
"""Of a GPU: enough to be on its machine, and to find room beside workers with a part of it."""
_LISTENS_WITHIN_S = 60.0
_STARTS = 4
"""Ray gives its own processes 30 s to start, which is too short on a busy machine."""
_LONGEST_TEMP = 24
"""Ray appends about 60 characters to its folder and a socket's path may have 107."""
_LOCAL_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}

log = logging.getLogger(__name__)


@contextmanager
def ray_session(address: str | None, *, cpus: int) -> Iterator[None]:
    """Use the session this process has, else join the cluster at `address`, else run Ray on this machine meanwhile.

    Raises:
        EngineError: the cluster does not answer, or Ray cannot run on this machine.
    """
    import ray

    with ExitStack() as stack:
        if not ray.is_initialized():
            at_sigterm = signal.getsignal(signal.SIGTERM)
            if address is not None:
                _join(address)
            else:
                _start_here(stack, cpus)
            stack.callback(ray.shutdown)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, at_sigterm)  # Ray's own ends the program with exit code 15
        yield


def _join(address: str) -> None:
    import ray

    try:
        _wait_for(os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)
        ray.init(address=address, **_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        advice = "start the cluster, correct executor.address, or leave it out to run on this machine"
        raise EngineError(f"no Ray cluster answers at {address!r} ({one_line(error)}); {advice}") from error
    free, all_there = (found.get("CPU", 0.0) for found in (ray.available_resources(), ray.cluster_resources()))
    if free < 1:
        log.warning("the Ray cluster at %s has no free CPU (of %g): waiting for one", address, all_there)


def _wait_for(address: str) -> None:
    """Return when somebody listens at an address that has a port: Ray itself would knock for a quarter of an hour.

    Raises:
        OSError: nobody did within a minute, time enough for a head that is being replaced.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    end = time.monotonic() + _LISTENS_WITHIN_S
    while place.port is not None:
        try:
            socket.create_connection((place.hostname, place.port), timeout=_LISTENS_WITHIN_S).close()
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _start_here(stack: ExitStack, cpus: int) -> None:
    import ray

    _check_loopback()
    stack.enter_context(_environment(_LOCAL_ENVIRONMENT))
    folder = tempfile.mkdtemp(prefix="unetpp-", dir=_short_temp())
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    options = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder, **_QUIET}
    if (quoted := shlex.quote(sys.executable)) != sys.executable:
        # Ray starts workers that have an environment of their own (Ray Train's have) by a line of shell and leaves
        # the interpreter's path as it is: in a folder with a space they would never start.
        options["runtime_env"] = {"py_executable": quoted}
    for tries in range(1, _STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # a plain Exception when a process of Ray is late
            ray.shutdown()
            if tries == _STARTS:
                advice = "stop what else runs on this machine, or use --executor local"
                raise EngineError(f"Ray did not start in {_STARTS} tries ({one_line(error)}); {advice}") from error


def _check_loopback() -> None:
    """Fail at once where this machine cannot talk to itself: Ray would only hang."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        raise EngineError(f"Ray needs the loopback network ({error.strerror}); use the executor local") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _short_temp() -> Path:
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST_TEMP else Path("/tmp")  # noqa: S108  # mkdtemp makes a private folder


def gpus_there() -> float:
    """Return how many GPUs the cluster has at this moment whose session is open."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0.0))


def on_cluster(work: Callable[..., Value], *values: Any, stop: threading.Event, gpu: bool = False) -> Value:
    """Call `work(*values)` on a CPU of the cluster whose session is open, and wait for what it returns.

    Args:
        work: can be pickled, like its values and its result.
        stop: set by another thread, ends the call there and here.
        gpu: on a machine with a GPU, which is in sight; a cluster that grows starts one where it has none.

    Raises:
        CancelledError: stopped.
        EngineError: its process died, or it raised something that is not ours.
        UnetppError: that it raised.
    """
    import ray

    reference = _task(_SLIVER if gpu else 0.0).remote(work, *values)
    future = reference.future()
    while not future.done():
        wait([future], timeout=_STOPS_WITHIN_S)
        if stop.is_set():
            ray.cancel(reference, force=True)
            raise CancelledError
    try:
        found: Value = future.result()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnetppError):
            raise error.cause from error
        raise EngineError(f"on the cluster: {one_line(error.cause)}") from error
    except ray.exceptions.RayError as error:
        raise EngineError(f"on the cluster: {one_line(error)}") from error
    return found


@cache
def _task(gpus: float) -> Any:
    """Return the task of `on_cluster`; Ray sends it once to a cluster, however often it is called."""
    import ray

    return ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")(_quietly)


def share(value: Value) -> Value:
    """Return what stands for a value in calls of `on_cluster`, so that it travels once to each machine."""
    import ray

    shared: Value = ray.put(value)
    return shared


def _quietly(work: Callable[..., Value], *values: Any) -> Value:
    return_freed_memory()
    return work(*values)
