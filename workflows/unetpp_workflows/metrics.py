"""Counts what a run does as Prometheus metrics, for a scraper or for node_exporter's text files; shows nothing itself.

Times are exported as moments, not as ages: an age that nobody renews would look young for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, start_http_server

from unetpp.commit import STAGES
from unetpp.durable import write_file
from unetpp.errors import ConfigError, OutputError
from unetpp_workflows.cli_options import exit_code
from unetpp_workflows.config import MetricsConfig

if TYPE_CHECKING:
    from unetpp.commit import CommitRecord
    from unetpp_workflows.executors.base import Outcome

_FILE_EVERY_S = 5.0


class RunMetrics:
    """The metrics of one call; all begin with `unetpp_` and carry the label `output`, and `part` where it is one.

    node_exporter reads all files of a folder, and refuses series that two of them have in common.

    Args:
        output: folder that the run writes.
        file: text file that is kept up to date, or None.
        part: which part of the archive the run computes, as in "3/8".
        every: hours until the next run is due, where a schedule starts them.

    Attributes:
        fault: why the file is not up to date; a file that cannot be written must not end a run.
    """

    def __init__(
        self,
        output: Path,
        file: Path | None = None,
        *,
        part: str | None = None,
        every: float | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        # Labels are UTF-8, which names of folders need not be.
        self._run = {"output": str(output.resolve()).encode(errors="backslashreplace").decode()}
        self._run |= {} if part is None else {"part": part}
        self._workers, self._file = 1, file
        self._began = self._queued = time.time()
        self.fault: OutputError | None = None
        self._written = 0.0
        self._waiting = 0
        self._compute = 0.0
        self._done = self._counter("shards_done", "Shards committed by this run.")
        self._retried = self._counter("shard_retries", "Tries of shards that failed before they were committed.")
        self._failed = self._counter("shards_failed", "Shards given up after their last try.")
        self._pixels = self._counter("pixels", "Valid output pixels committed.")
        self._seconds = self._counter(
            "stage_seconds", "Seconds in read, compute and write, summed over workers.", "stage"
        )
        self._images = self._counter("images", "Images that this run ended with, by status.", "status")
        self._left = self._gauge("shards_waiting", "Shards that are not settled yet.")
        self._oldest = self._gauge(
            "queue_oldest_timestamp_seconds", "When the oldest waiting shard was queued; 0: none."
        )
        self._commit = self._gauge("last_commit_timestamp_seconds", "When a shard was last committed.")
        self._gauge("run_start_timestamp_seconds", "When this run began.").set(self._began)
        self._finished = self._gauge("run_finish_timestamp_seconds", "When this run ended; 0 while it runs.")
        if every is not None:
            self._gauge("run_every_seconds", "Time from one run to the next, as scheduled.").set(every * 3600)
        self._exit = self._gauge("run_exit_code", "How this run ended: 0 done, else not; -1 while it runs.")
        self._exit.set(-1)
        self._busy = self._gauge("device_busy_ratio", "Share of the time that workers spent computing.", "device")
        self._stages = {stage: self._seconds.labels(**self._run, stage=stage) for stage in STAGES}

    def queued(self, shards: int, device: str, workers: int) -> None:
        """Say how many shards are to be done, on what ("cpu" or "cuda"), and how many compute at the same time."""
        self._waiting, self._queued, self._workers = shards, time.time(), workers
        self._busy.labels(**self._run, device=device).set_function(self._busy_share)
        self._settle(0)
        self.update()  # the next shard may never be settled, which this file is to tell

    def committed(self, record: CommitRecord) -> None:
        """Count a shard that this run committed."""
        self._done.inc()
        if record.attempt > 1:
            self._retried.inc(record.attempt - 1)
        self._pixels.inc(record.valid_px)
        for stage, counter in self._stages.items():
            counter.inc(record.seconds.get(stage, 0.0))
        self._compute += record.seconds.get("compute", 0.0)
        self._commit.set_to_current_time()
        self._settle(1)

    def ended(self, outcome: Outcome) -> None:
        """Count the shards of one image that were given up."""
        self._failed.inc(len(outcome.failed))
        self._settle(len(outcome.failed))

    def finished(self, images: Mapping[str, int], exit_code: int) -> None:
        """Say how many images have each status, and how the run ended."""
        for status, count in images.items():
            self._images.labels(**self._run, status=status).inc(count)
        self._exit.set(exit_code)
        self._finished.set_to_current_time()

    def write(self) -> None:
        """Replace the text file, where there is one. Raises `OutputError`."""
        if self._file is not None:
            self._written = time.monotonic()
            write_file(self._file, generate_latest(self.registry))

    def update(self) -> None:
        """Replace the text file, where there is one; where that fails, `fault` says why until it succeeds again."""
        try:
            self.write()
            self.fault = None
        except OutputError as error:
            self.fault = error

    def _settle(self, shards: int) -> None:
        self._waiting -= shards
        self._left.set(self._waiting)
        self._oldest.set(self._queued if self._waiting else 0)
        if time.monotonic() - self._written > _FILE_EVERY_S:
            self.update()

    def _busy_share(self) -> float:
        return self._compute / max((time.time() - self._began) * self._workers, 1e-9)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        made = Counter(name, what, (*self._run, *labels), namespace="unetpp", registry=self.registry)
        return made if labels else made.labels(**self._run)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        made = Gauge(name, what, (*self._run, *labels), namespace="unetpp", registry=self.registry)
        return made if labels else made.labels(**self._run)


@contextmanager
def exported(config: MetricsConfig, output: Path, *, part: str | None = None) -> Iterator[RunMetrics]:
    """Serve and write the metrics of the run in this block; the file stays, and says how the block was left.

    Args:
        output, part: see `RunMetrics`.

    Raises:
        ConfigError: the port is taken.
        OutputError: the file cannot be begun.
    """
    metrics = RunMetrics(output, config.file, part=part, every=config.every)
    metrics.write()
    try:
        with _served(config, metrics):
            yield metrics
    except BaseException as error:
        metrics.finished({}, exit_code(error))
        raise
    finally:
        metrics.update()


@contextmanager
def _served(config: MetricsConfig, metrics: RunMetrics) -> Iterator[None]:
    """Serve metrics at the port, if there is one; raises `ConfigError` where it is taken."""
    if config.port is None:
        yield
        return
    try:
        server, thread = start_http_server(config.port, addr=config.host, registry=metrics.registry)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {config.host}:{config.port} ({error.strerror}); choose another port"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_end(config: MetricsConfig, output: Path, code: int) -> None:
    """Write that a run without shards has ended now, in the place of what the file says. Raises `OutputError`."""
    metrics = RunMetrics(output, config.file, every=config.every)
    metrics.finished({}, code)
    metrics.write()
