"""A Ray cluster of two hosts, each in a network namespace, with a token: a segmentation by `ray job submit`."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetpp_workflows.record import ImageRecord

HEAD, WORKER = "10.211.7.1", "10.211.7.2"


class Hosts:
    """Two network namespaces joined by one cable."""

    def __init__(self, environment: dict[str, str]) -> None:
        mark = secrets.token_hex(3)
        self.names = (f"uh{mark}", f"uw{mark}")
        self.environment = environment

    def start(self, host: int, *command: str) -> subprocess.Popen[bytes]:
        """Start a program on a host."""
        log = Path(self.environment["LOGS"]) / f"{host}-{command[0].rpartition('/')[2]}.log"
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command], env=self.environment, stdout=file, stderr=file
            )

    def run(self, host: int, *command: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **({"RAY_AUTH_TOKEN": token} if token else {})}
        return subprocess.run(
            ["ip", "netns", "exec", self.names[host], *command],
            env=environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip

    def kill(self) -> None:
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@contextmanager
def hosts(environment: dict[str, str]) -> Iterator[Hosts]:
    """Make both hosts; what still runs in them is killed at the end."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and network namespaces: apt-get install iproute2")
    found = Hosts(environment)
    with ExitStack() as stack:
        for name in found.names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        stack.callback(found.kill)
        first, second = found.names
        _ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(found.names, (HEAD, WORKER), strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_on_two_hosts_needs_the_token(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="uray-", dir="/tmp"))
    program = folder / "unetpp"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unetpp_workflows "$@"\n')
    program.chmod(0o755)
    ray = str(Path(sys.executable).parent / "ray")
    roots = ":".join(str(Path(part).resolve()) for part in sys.path if part)
    environment = {
        **os.environ, "PYTHONPATH": roots, "PATH": f"{folder}:{Path(ray).parent}:{os.environ['PATH']}",
        "LOGS": str(folder), "HOME": str(folder), "UNETPP_HOME": str(folder / "home"), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": f"http://{HEAD}:8265",
    }  # fmt: skip
    archive, output = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(random.integers(0, 255, (300, 300, 3), np.uint8)).save(archive / f"{name}.png")
    common = ("--disable-usage-stats", "--object-store-memory=100000000", "--block")
    try:
        with hosts(environment) as two:
            two.start(
                0, ray, "start", "--head", f"--node-ip-address={HEAD}", f"--dashboard-host={HEAD}", "--num-cpus=0",
                f"--temp-dir={folder}/r", *common,
            )  # fmt: skip
            _until(lambda: two.run(0, ray, "health-check", "--address", f"{HEAD}:6379").returncode == 0, folder)
            two.start(1, ray, "start", f"--address={HEAD}:6379", f"--node-ip-address={WORKER}", "--num-cpus=2", *common)
            refused = two.run(0, ray, "job", "submit", "--", "true", token=secrets.token_hex(32))
            assert refused.returncode != 0
            done = two.run(
                0, ray, "job", "submit", "--", "unetpp", "segment", str(archive), "--model", "landcover", "--spacing",
                "0.5m", "--output", str(output), "--executor", "ray", "--workers", "2", "--set",
                "executor.address=auto", "--set", "tiling.core=128", "--set", "tiling.shard=128", "--set",
                "tracking.enabled=false",
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr + _logs(folder)
        for name in ("a", "b", "c"):
            record = ImageRecord.read(output / name)
            assert record is not None and record.status == "done" and record.executor["kind"] == "ray"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _until(ready: object, folder: Path, seconds: float = 240) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, _logs(folder)
        time.sleep(0.5)


def _logs(folder: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in folder.glob("*.log"))
