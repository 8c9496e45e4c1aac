"""Computes one of N parts of an archive's shards, for machines that share a file system and no network.

    0/N prepares every image -> 1/N ... N/N compute, in any order, at once or not -> a call without a part finishes

Which part a shard belongs to depends only on its image's name and its place, so a part can be run again anywhere. Parts
write no records: only the last call, which sees all shards, knows how an image ended.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from unetpp.errors import ConfigError, EngineError, ModelPackageError, StoreError, UnetppError
from unetpp_workflows.cli_options import DONE, PART_FAILED
from unetpp_workflows.config import RunConfig
from unetpp_workflows.events import EventLog
from unetpp_workflows.fitting import fitted
from unetpp_workflows.inputs import Source
from unetpp_workflows.lease import Lease
from unetpp_workflows.metrics import exported
from unetpp_workflows.pipeline import find_sources, make_folder, run_shards, start_call
from unetpp_workflows.preparing import Prepared, prepared
from unetpp_workflows.progress import Display
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.steps import Call, result_hash, reuse, shown_config, stored_config_hash
from unetpp_workflows.summary import ImageResult

if TYPE_CHECKING:
    from unetpp.job import SegmentJob
    from unetpp.tiling import Shard


@dataclass(frozen=True)
class Part:
    """The K-th of N parts, counted from 1; 0 is the preparation of all."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "K/N". Raises `ConfigError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) < 1:
            raise ConfigError(f"--part {text!r}: write it like 3/8, from 1/8 to 8/8; 0/8 prepares")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, job: SegmentJob, shard: Shard) -> bool:
        """Say whether a shard is in this part. Neighbours are in different parts, as dear shards lie together."""
        _, columns = job.plan.grid_shape
        # The name, too: else all images of one shard would be in the first part.
        return (zlib.crc32(job.out.name.encode()) + shard.row * columns + shard.col) % self.count == self.index - 1


def segment_part(
    inputs: Iterable[str | Path], output: Path, part: Part, *, config: RunConfig, console: Console | None = None
) -> int:
    """Prepare the images (part 0) or compute the part's shards; returns the exit code: 1 where anything failed.

    Raises:
        ModelNotFoundError, ModelPackageError, ConfigError, EngineError: nothing can be segmented at all.
        StoreError: the same part, or a call without a part, is running.
    """
    display = Display(console)
    call = start_call(config, None, {})
    make_folder(output)
    name = f"{part.index}-of-{part.count}"
    # The preparation writes what every part reads: it has the folder for itself.
    with (
        Lease(output, part=name if part.index else None) as lease,
        exported(config.metrics, output, part=str(part)) as metrics,
        closing(EventLog(output)) as log,
    ):
        sources, unnamed = find_sources(inputs, output)
        log.write("part_started", part=str(part), images=len(sources), config=shown_config(call.config))
        faults = [str(result.message) for result in unnamed.values()]
        jobs: list[Prepared] = []
        for source in sources:
            try:
                found = _job(call, source, part)
            except (EngineError, ModelPackageError):
                raise
            except (UnetppError, OSError) as error:
                faults.append(" ".join(str(error).split()))
                continue
            if isinstance(found, ImageResult):
                faults += [str(found.message)] if found.status == "failed" else []
            else:
                jobs.append(found)
        done = 0
        if part.index and jobs:
            call = fitted(call, [ready.job for ready in jobs], display.say)
            for ready, outcome in zip(jobs, run_shards(call, jobs, display, lease, log, metrics), strict=True):
                metrics.ended(outcome)
                done += outcome.done
                faults += [f"{ready.source.uri}: shard {shard}: {why}" for shard, why in outcome.failed.items()]
        log.write("part_finished", part=str(part), exit_code=PART_FAILED if faults else DONE, shards=done)
        faults += [str(log.fault)] if log.fault is not None else []
        for fault in faults:
            display.say(f"failed: {fault}")
        display.say(
            f"part {part}: {done} shards of {len(jobs)} images done now"
            if part.index
            else f"{len(jobs)} images prepared for {part.count} parts, {len(sources) - len(jobs)} finished or failed"
        )
        code = PART_FAILED if faults else DONE
        metrics.finished({}, code)
        metrics.update()
        if metrics.fault is not None:
            display.say(f"failed: {metrics.fault}")
            code = PART_FAILED
    return code


def _job(call: Call, source: Source, part: Part) -> Prepared | ImageResult:
    """Return an image's job, prepared now (part 0) or before; or the result where it needs no work, or failed."""
    if not part.index:
        return prepared(call, source)
    return reuse(call, source) or _prepared_before(call, source, part)


def _prepared_before(call: Call, source: Source, part: Part) -> Prepared:
    from unetpp.io.base import fingerprint
    from unetpp.segment import SegmentJob
    from unetpp_workflows.executors.base import pending_places

    job = SegmentJob.load(source.folder)
    same = (
        job is not None
        and job.model_ref["digest"] == call.package.digest
        and stored_config_hash(source.folder) == result_hash(call, source)
        and job.fingerprint == fingerprint(source.uri)
    )
    if job is None or not same:
        before = ImageRecord.read(source.folder) if job is None else None
        if before is not None and before.message:
            raise StoreError(f"{before.message}; that mended, run the same command with --part 0/{part.count} again")
        raise StoreError(
            f"{source.uri} is not prepared for this model and configuration in {source.folder}; "
            f"run the same command with --part 0/{part.count} first"
        )
    return Prepared(source, job, pending_places(job, part.takes), {})
