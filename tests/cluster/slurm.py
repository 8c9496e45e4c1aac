"""A real Slurm of one node on this machine, in a folder of its own, for tests that need one."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; `environment` is what its commands need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path) -> str:
        """Run a command of Slurm, or a script that calls some, and return what it prints."""
        ran = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
        return ran.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job or of one task of an array (12_3)."""
        text = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in text.splitlines()[0].split() if "=" in word)

    def wait(self, number: str, seconds: float = 400) -> dict[str, str]:
        """Return a job's facts when it has ended, whatever the end."""
        end = time.monotonic() + seconds
        while (facts := self.job(number))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            assert time.monotonic() < end, f"{facts}\n{self.log()}"
            time.sleep(0.2)
        return facts

    def requeue(self, number: str) -> None:
        """Stop a running job and put it back into the queue, as a preemption does, without the two minutes of delay."""
        self.run("scontrol", "requeue", number)
        self.start_now(number)

    def start_now(self, number: str, seconds: float = 120) -> None:
        """Let a requeued job start as soon as its old processes are gone."""
        end = time.monotonic() + seconds
        while self.job(number)["JobState"] != "PENDING":
            assert time.monotonic() < end, self.log()
            time.sleep(0.2)
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def log(self) -> str:
        return "\n".join(file.read_text()[-3000:] for file in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm(environment: dict[str, str]) -> Iterator[Slurm]:
    """Start munge, slurmctld and slurmd; skip where they are not installed or this is not root."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in PROGRAMS):
        pytest.skip("needs root and Slurm: apt-get install slurm-wlm")
    host, cpus = socket.gethostname().split(".")[0], os.cpu_count()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="unetpp-slurm-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        for name, mode in (("munge", 0o700), ("state", 0o755), ("spool", 0o755)):
            (folder / name).mkdir(mode)
        (folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
        (folder / "munge" / "key").chmod(0o400)
        (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder, host=host, cpus=cpus, **_ports()))
        munge = {name: folder / "munge" / name for name in ("key", "seed", "log", "pid")}
        options = [f"--{name}-file={path}" for name, path in munge.items()]
        _start(stack, folder, "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options)
        _until((folder / "munge.socket").exists, folder)
        found = Slurm(folder, {**environment, "SLURM_CONF": str(folder / "slurm.conf")})
        for program in ("slurmctld", "slurmd"):
            _start(stack, folder, program, "-D", "-f", str(folder / "slurm.conf"))
        _until(lambda: b"idle" in _quiet(found, "sinfo", "--noheader", "--format=%T"), folder)
        stack.callback(_quiet, found, "scancel", "--user=root")
        yield found


def _start(stack: ExitStack, folder: Path, *command: str) -> None:
    log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)


def _quiet(found: Slurm, *command: str) -> bytes:
    return subprocess.run(command, env=found.environment, capture_output=True, timeout=60, check=False).stdout


def _until(ready: object, folder: Path, seconds: float = 120) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        logs = "\n".join(file.read_text()[-2000:] for file in folder.glob("*.log"))
        assert time.monotonic() < end, f"Slurm does not start: {logs}"
        time.sleep(0.2)


def _ports() -> dict[str, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return {"controller": first.getsockname()[1], "daemon": second.getsockname()[1]}


_CONFIGURATION = """
ClusterName=unetpp
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={controller}
SlurmdPort={daemon}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
"""
