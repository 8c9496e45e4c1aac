"""A Ray cluster of two hosts, each in a network namespace, with a token: jobs, nights, hosts that are lost."""

from __future__ import annotations

import hashlib
import json
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

from unetpp.commit import audit
from unetpp.job import SegmentJob
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

    def cable(self, state: str) -> None:
        """Plug the cable in ("up") or pull it out ("down")."""
        _ip("-n", self.names[1], "link", "set", "cable", state)

    def kill(self, *numbers: int) -> None:
        """Kill every process of these hosts, or of both."""
        for name in [self.names[number] for number in numbers or (0, 1)]:
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


class RayHosts:
    """A Ray on two hosts with a token; losing a host is noticed within seconds."""

    def __init__(self, two: Hosts, folder: Path) -> None:
        self.two, self.folder = two, folder
        self._ray = str(Path(sys.executable).parent / "ray")
        self._common = ("--disable-usage-stats", "--object-store-memory=100000000", "--block")

    def start_head(self, cpus: int) -> None:
        self.two.start(
            0, self._ray, "start", "--head", f"--node-ip-address={HEAD}", f"--dashboard-host={HEAD}",
            f"--num-cpus={cpus}", f"--temp-dir={self.folder}/r", *self._common,
        )  # fmt: skip
        _until(lambda: self.ray("health-check", "--address", f"{HEAD}:6379").returncode == 0, self.folder)

    def start_worker(self, cpus: int) -> None:
        self.two.start(
            1, self._ray, "start", f"--address={HEAD}:6379", f"--node-ip-address={WORKER}", f"--num-cpus={cpus}",
            *self._common,
        )  # fmt: skip
        _until(lambda: self.alive() == 2, self.folder)

    def alive(self) -> int:
        listed = self.ray("list", "nodes", "--filter", "state=ALIVE", "--format", "json").stdout
        return listed.count('"ALIVE"')

    def ray(self, *command: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.two.run(0, self._ray, *command, token=token)

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a job and return when it has ended."""
        return self.ray("job", "submit", "--", *command)

    def begin(self, *command: str) -> subprocess.Popen[bytes]:
        return self.two.start(0, self._ray, "job", "submit", "--", *command)


@pytest.fixture
def ray_hosts(tmp_path: Path) -> Iterator[RayHosts]:
    """Two hosts on which nothing runs yet; `unetpp` is in their path."""
    folder = Path(tempfile.mkdtemp(prefix="uray-", dir="/tmp"))
    program = folder / "unetpp"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unetpp_workflows "$@"\n')
    program.chmod(0o755)
    roots = ":".join(str(Path(part).resolve()) for part in sys.path if part)
    environment = {
        **os.environ, "PYTHONPATH": roots, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOGS": str(folder), "HOME": str(folder), "UNETPP_HOME": str(folder / "home"), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": f"http://{HEAD}:8265",
        "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }  # fmt: skip
    try:
        with hosts(environment) as two:
            yield RayHosts(two, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def draw(folder: Path, names: str, side: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in names:
        Image.fromarray(random.integers(0, 255, (side, side, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def segmentation(archive: Path, output: Path, executor: str = "ray") -> list[str]:
    """The command for an archive without pixel sizes, in shards of one small tile."""
    settings = ["tiling.core=128", "tiling.shard=128", "tracking.enabled=false"]
    settings += ["executor.address=auto"] if executor == "ray" else []
    return [
        "unetpp", "segment", str(archive), "--model", "landcover", "--spacing", "0.5m", "--output", str(output),
        "--executor", executor, "--workers", "2", *(word for setting in settings for word in ("--set", setting)),
    ]  # fmt: skip


def undisturbed(archive: Path, output: Path) -> dict[str, str]:
    """Hashes of the labels that the same command makes on this machine without Ray."""
    command = [sys.executable, "-m", "unetpp_workflows", *segmentation(archive, output, "local")[1:]]
    subprocess.run(command, check=True, capture_output=True)
    return hashes(output)


def hashes(output: Path) -> dict[str, str]:
    files = [file for file in output.glob("*/labels.ome.zarr/**/*") if file.is_file()]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def commits(output: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in output.glob("*/commits/*.json")}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_on_two_hosts_needs_the_token(ray_hosts: RayHosts, tmp_path: Path) -> None:
    archive, output = draw(tmp_path / "archive", "abc", 300), tmp_path / "out"
    ray_hosts.start_head(cpus=0)
    ray_hosts.start_worker(cpus=2)
    assert ray_hosts.ray("job", "submit", "--", "true", token=secrets.token_hex(32)).returncode != 0
    done = ray_hosts.submit(*segmentation(archive, output))
    assert done.returncode == 0, done.stdout + done.stderr + _logs(ray_hosts.folder)
    for name in "abc":
        record = ImageRecord.read(output / name)
        assert record is not None and record.status == "done" and record.executor["kind"] == "ray"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_host_cut_off_and_brought_back_loses_and_doubles_nothing(ray_hosts: RayHosts, tmp_path: Path) -> None:
    archive, output = draw(tmp_path / "archive", "a", 2400), tmp_path / "out"
    ray_hosts.start_head(cpus=1)
    ray_hosts.start_worker(cpus=1)
    job = ray_hosts.begin(*segmentation(archive, output))
    _until(lambda: len(commits(output)) >= 8, ray_hosts.folder)
    before = commits(output)
    ray_hosts.two.cable("down")
    _until(lambda: ray_hosts.alive() == 1, ray_hosts.folder)
    ray_hosts.two.kill(1)  # what cut the host off ends its processes in the end: a watchdog, a reboot
    ray_hosts.two.cable("up")
    ray_hosts.start_worker(cpus=1)
    assert len(commits(output)) < 361, "the job was over before the host came back"
    assert job.wait(900) == 0, _logs(ray_hosts.folder)
    record, found = ImageRecord.read(output / "a"), SegmentJob.load(output / "a")
    assert record is not None and record.status == "done" and record.shards["committed"] == 361 and found is not None
    assert {file: file.stat().st_mtime_ns for file in before} == before
    seen = audit(found.store, found.key)
    # The host may have finished, out of sight, the two shards it had; others made them again, to the same bytes.
    assert not seen.lost and len(seen.twice) <= 2
    assert hashes(output) == undisturbed(archive, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_head_killed_and_started_again_goes_on(ray_hosts: RayHosts, tmp_path: Path) -> None:
    archive, output = draw(tmp_path / "archive", "a", 2400), tmp_path / "out"
    ray_hosts.start_head(cpus=1)
    ray_hosts.start_worker(cpus=1)
    job = ray_hosts.begin(*segmentation(archive, output))
    _until(lambda: len(commits(output)) >= 8, ray_hosts.folder)
    ray_hosts.two.kill(0)  # with the driver and the client that waits for it
    assert job.wait(60) != 0
    ray_hosts.two.kill(1)
    before = commits(output)
    assert 8 <= len(before) < 361
    ray_hosts.start_head(cpus=1)
    ray_hosts.start_worker(cpus=1)
    done = ray_hosts.submit(*segmentation(archive, output))
    assert done.returncode == 0, done.stdout + done.stderr + _logs(ray_hosts.folder)
    found = SegmentJob.load(output / "a")
    assert found is not None and len(commits(output)) == 361
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a committed shard was computed again"
    seen = audit(found.store, found.key)
    assert not seen.lost and not seen.twice
    assert hashes(output) == undisturbed(archive, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_night_as_a_job_twice_doubles_nothing(ray_hosts: RayHosts, tmp_path: Path) -> None:
    archive, output, config = draw(tmp_path / "archive", "ab", 300), tmp_path / "out", tmp_path / "nightly.toml"
    config.write_text(
        f'archive = ["{archive}"]\noutput = "{output}"\nmodel = "landcover"\n[segment]\n'
        'input = { spacing = "0.5m" }\ntiling = { core = 128 }\n'
        'executor = { kind = "ray", workers = 2, address = "auto" }\n'
    )
    registered = ray_hosts.two.run(0, "unetpp", "models", "register", "landcover", "--alias", "champion")
    assert registered.returncode == 0, registered.stderr
    ray_hosts.start_head(cpus=0)
    ray_hosts.start_worker(cpus=2)
    first = ray_hosts.submit("unetpp", "nightly", str(config))
    assert first.returncode == 0, first.stdout + first.stderr + _logs(ray_hosts.folder)
    made, labels = commits(output), hashes(output)
    second = ray_hosts.submit("unetpp", "nightly", str(config))
    assert second.returncode == 0, second.stdout + second.stderr
    assert commits(output) == made and hashes(output) == labels and made
    images = json.loads((output / "nightly" / "ledger.json").read_text())["images"]
    assert sorted(Path(uri).name for uri in images) == ["a.png", "b.png"]
    nights = [json.loads(file.read_text()) for file in sorted((output / "nightly").glob("2*.json"))]
    assert len(nights) == 2 and not any(night["problems"] for night in nights)
    assert sorted(nights[0]["images"]) == ["a", "b"] and not nights[1]["images"]


def _until(ready: object, folder: Path, seconds: float = 240) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, _logs(folder)
        time.sleep(0.5)


def _logs(folder: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in folder.glob("*.log"))
