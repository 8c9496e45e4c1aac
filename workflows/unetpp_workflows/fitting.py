"""Says how many workers' tiles fit the memory of this machine; starts none.

A container with many cores and little memory is killed without a word where every core computes a tile. What is free
is the least that the machine and the cgroups around this process have left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unetpp_workflows.finishing import images_at_once
from unetpp_workflows.machine import free_memory
from unetpp_workflows.steps import Call

if TYPE_CHECKING:
    from unetpp.job import SegmentJob

_PROCESS, _TORCH = 250e6, 200e6
"""Bytes of a process that segments, without its tiles: libraries, windows, outlines (measured). Those of torch."""
_FINISHING, _SPLITTING = 220e6, 160e6
"""Bytes of a process that finishes images beside that one, and more where it splits objects (drawn slides, 67 Mpx)."""
_SMALLER = (768, 512, 384, 256)
"""Cores, px, that are advised where one tile does not fit."""


@dataclass(frozen=True)
class Need:
    """What a call takes: `fixed` bytes, and `worker` more for each worker."""

    fixed: float
    worker: float

    def of(self, workers: int) -> float:
        return self.fixed + workers * self.worker

    def fitting(self, free: float) -> int:
        """Return how many workers fit so many bytes, at least one."""
        return max(1, int((free - self.fixed) / self.worker))


def fitted(call: Call, jobs: Sequence[SegmentJob], say: Callable[[str], None]) -> Call:
    """Return the call with as many workers as this machine's memory has room for, and say so where these are fewer.

    A number of workers that the user gave stays, and so do workers on a cluster, whose machines are not this one, and
    on a GPU.
    """
    if call.config.executor.workers or not _counts(call, jobs):
        return call
    need, free = need_of(call, jobs), free_memory()
    if free is None or call.workers <= (fits := need.fitting(free)):
        return call
    say(
        f"memory for {fits} of {call.workers} workers: {free / 1e9:.1f} GB are free, each takes about "
        f"{need.worker / 1e9:.1f} GB; --workers overrules this{_advice(call, jobs, free)}"
    )
    return dataclasses.replace(call, workers=fits)


def need_of(call: Call, jobs: Sequence[SegmentJob], core: int | None = None) -> Need:
    """Return what the largest of the jobs' tiles takes, or one of another core (px).

    Ray's workers are processes of their own, and so is what finishes images where several are finished at once.
    """
    from unetpp.engine.memory import call_bytes

    job = max(jobs, key=lambda job: job.plan.tile_shape[0] * job.plan.tile_shape[1])
    height, width = job.plan.tile_shape
    if core is not None:
        height, width = (min(side, core + 2 * job.plan.halo) for side in (height, width))
    engine = job.engine
    tile = call_bytes(
        call.package.spec, engine.name, engine.precision, (height, width), engine.tta, maps=bool(job.maps)
    )
    process = _PROCESS + (_TORCH if engine.name == "torch" or job.maps or engine.tta != "none" else 0)
    finished = min(images_at_once(remote=call.address is not None), len(jobs))
    each = _FINISHING + (_SPLITTING if call.config.output.instances else 0)
    beside = each * finished if finished > 1 else 0.0
    return Need(process + beside, tile + (process if call.config.executor.kind == "ray" else 0))


def _counts(call: Call, jobs: Sequence[SegmentJob]) -> bool:
    return call.address is None and all(job.engine.device == "cpu" for job in jobs)


def _advice(call: Call, jobs: Sequence[SegmentJob], free: float) -> str:
    """Name smaller tiles where not even one worker fits."""
    if need_of(call, jobs).of(1) <= free:
        return ""
    for core in _SMALLER:
        if (need := need_of(call, jobs, core).of(1)) <= free:
            return f". Not even one fits: --set tiling.core={core} takes {need / 1e9:.1f} GB"
    return ". Not even one fits, however small its tiles"
