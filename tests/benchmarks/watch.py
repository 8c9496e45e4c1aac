"""Runs one command and watches its time, processor time and memory; knows nothing of what the command does.

Memory is the proportional set size (PSS) of the process and all below it: pages that several of them share count once.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

EVERY_S, PSS_S = 0.25, 1.0
"""Seconds between two looks, and between two at the PSS while processes hold no more in sum than ever before: that
takes up to 15 ms of a gigabyte, and the lock of its pages; four times a second it was 1.6% of two cores."""


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        seconds: wall time from its start to its end, without pauses.
        paused_seconds: how long it was stopped for `Pauses`.
        processor_seconds: user and system time of the process itself, without its children.
        peak_pss_mb: largest PSS (10^6 bytes) among the looks.
        peak_at_s: when that was, in seconds after the start.
        load: mean one-minute load average.
        ended: "done", "exit code N", or why it was stopped.
        text: its standard output and error.
    """

    seconds: float
    processor_seconds: float
    peak_pss_mb: float
    peak_at_s: float
    load: float
    ended: str
    text: str
    paused_seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "processor_seconds": round(self.processor_seconds, 1),
            "peak_pss_mb": round(self.peak_pss_mb),
            "peak_at_s": round(self.peak_at_s, 1),
            "load": round(self.load, 2),
            "ended": self.ended,
        }


@dataclass(frozen=True)
class Pauses:
    """Stops a command now and then to measure something else on the same machine in the same minutes.

    Attributes:
        every_s: seconds that it runs between two pauses.
        measure: called while it is stopped.
        until: no pause once this stands in what it has printed.
    """

    every_s: float
    measure: Callable[[], None]
    until: str


def watch(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    most_seconds: float | None = None,
    most_mb: float | None = None,
    pauses: Pauses | None = None,
) -> Watched:
    """Run a command to its end, or until it has taken so many seconds or so much memory; then it and all below end."""
    began, times, loads, ended, paused = time.perf_counter(), 0.0, [], "", 0.0
    pause_at = math.inf if pauses is None else pauses.every_s
    peak, peak_at, most_resident, look_at = 0.0, 0.0, 0, 0.0
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(process.stdout,))  # a full pipe would stop the command
        reader.start()
        try:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                now = time.perf_counter() - began - paused
                try:
                    used = watched.cpu_times()
                    times = used.user + used.system
                    members = [watched, *watched.children(recursive=True)]
                    resident = sum(member.memory_info().rss for member in members)
                    if resident > most_resident or now >= look_at:
                        pss = sum(member.memory_full_info().pss for member in members) / 1e6
                        peak, peak_at = max((peak, peak_at), (pss, now))
                        most_resident, look_at = max(most_resident, resident), now + PSS_S
                        if most_mb is not None and pss > most_mb:
                            ended = f"stopped at {most_mb:.0f} MB"
                except psutil.Error:
                    pass  # it ended between two looks
                if most_seconds is not None and now > most_seconds:
                    ended = f"stopped after {most_seconds:g} s"
                if ended:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
                loads.append(os.getloadavg()[0])
                if pauses is not None and now > pause_at and not any(pauses.until in line for line in lines):
                    paused += _pause(process.pid, pauses)
                    pause_at = now + pauses.every_s
                time.sleep(EVERY_S)
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
    ended = ended or ("done" if code == 0 else f"exit code {code}")
    seconds = time.perf_counter() - began - paused
    return Watched(seconds, times, peak, peak_at, sum(loads) / max(len(loads), 1), ended, "".join(lines), paused)


def _pause(group: int, pauses: Pauses) -> float:
    """Measure while the whole group of processes is stopped; returns how long that was, in seconds."""
    began = time.perf_counter()
    os.killpg(group, signal.SIGSTOP)
    try:
        pauses.measure()
    finally:
        os.killpg(group, signal.SIGCONT)
    return time.perf_counter() - began
