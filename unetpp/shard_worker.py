"""Computes the shards of one job, each from its own window of the image; knows no queue and no other worker.

read     window + halo, one strip of tiles at a time, each source pixel once
compute  tile by tile; invalid pixels become 255 and tiles without valid pixels are skipped
write    one Zarr shard, then its commit record
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.durable import file_sha256
from unetpp.engine import choose_engine
from unetpp.engine.base import Engine, without_margins
from unetpp.errors import EngineError, ModelPackageError, StoreError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.resample import GridReader
from unetpp.job import EngineChoice, SegmentJob
from unetpp.lock import FolderLock
from unetpp.package import ModelSpec, Package, load_package
from unetpp.store import NO_DATA, LabelStore, Levels
from unetpp.tiling import Shard, Tile, cut

_ENGINES_KEPT = 4


class ShardWorker:
    """Computes shards of one job, one at a time; open one per thread or process and close it.

    Args:
        stop: when set, the running shard ends before its next tile with `CancelledError`, uncommitted.
        slots: how many shards may compute at once, counted over all workers that are given the same one. With more
            workers than slots, some read and write while others compute; a worker holds one tile's window meanwhile.

    Raises:
        ModelPackageError: the model package changed since the job was prepared.
        StoreError: another run is preparing the folder, or did.
        Also what `open_raster` and `choose_engine` raise.
    """

    def __init__(
        self, job: SegmentJob, stop: threading.Event | None = None, slots: threading.Semaphore | None = None
    ) -> None:
        self.job = job
        self._stop = stop or threading.Event()
        self._slots = slots or threading.Semaphore()
        self._stores: tuple[Levels, ...] = (LabelStore(job.out, job.plan), *job.map_stores)
        package = load_package(job.package)
        if package.digest != job.model_ref["digest"]:
            raise ModelPackageError(f"{job.package} changed after the job was prepared; run segment again")
        self._engine = _planned_engine(package, job.engine)
        self._fill = _fill_values(package.spec)
        with ExitStack() as stack:
            stack.enter_context(FolderLock(job.out, exclusive=False))
            current = SegmentJob.load(job.out)
            if current is None or current.key != job.key:
                raise StoreError(f"{job.out} now belongs to another job; give each run its own output folder")
            self._coverage = job.coverage()
            self._reader = GridReader(stack.enter_context(open_raster(job.uri)), job.grid)
            self._open = stack.pop_all()

    def close(self) -> None:
        self._open.close()

    def run(self, shard: Shard, attempt: int = 1) -> CommitRecord:
        """Compute, write and commit one shard; what an earlier try left of it is deleted.

        A shard that is committed already is left alone: its worker died before it could say so.

        Raises:
            CorruptImageError: the source does not decode there.
            OutputError: the shard or its record cannot be written.
            EngineError: the engine failed.
        """
        done = commit.committed_record(self.job.store, shard, self.job.key)
        if done is not None:
            return done
        commit.revoke(self.job.store, shard)
        seconds: defaultdict[str, float] = defaultdict(float)
        counts = dict.fromkeys((c.value for c in self.job.classes), 0)
        layers = self._layers(shard, counts, seconds)
        with _timed(seconds, "write"):
            (_, digest, size), *maps = self._write(shard, layers)
        record = CommitRecord(
            shard=shard.id,
            key=self.job.key,
            sha256=digest,
            size=size,
            valid_px=sum(counts.values()),
            counts=counts,
            attempt=attempt,
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=dict(seconds),
            maps={name: {"sha256": sha256, "size": size} for name, sha256, size in maps},
        )
        commit.write(self.job.store, record)
        return record

    def _write(self, shard: Shard, layers: NDArray[np.uint8] | None) -> list[tuple[str, str | None, int]]:
        """Write labels and maps; returns each array's name and its object's SHA-256 and size."""
        for store in self._stores:
            store.delete_shard(shard)
        if layers is None:
            return [(store.name, None, 0) for store in self._stores]
        written: list[tuple[str, str | None, int]] = []
        begin = 0
        for store in self._stores:
            end = begin + (store.planes or 1)
            path = store.write_shard(shard, layers[begin] if store.planes is None else layers[begin:end])
            written.append((store.name, file_sha256(path), path.stat().st_size))
            begin = end
        return written

    def _layers(self, shard: Shard, counts: dict[int, int], seconds: dict[str, float]) -> NDArray[np.uint8] | None:
        """Return the shard's labels and maps (planes, h, w), None where nothing is valid.

        Its pixels per class are added to `counts`.
        """
        layers: NDArray[np.uint8] | None = None
        window: _Window | None = None
        for tile in sorted(self.job.plan.tiles(shard), key=lambda tile: tile.write_box.x0):
            if self._stop.is_set():
                raise CancelledError
            if not self._coverage.any(tile.write_box):
                continue
            with _timed(seconds, "read"):
                window = self._read(tile.read_box, window)
            with self._slots, _timed(seconds, "compute"):
                if self._stop.is_set():
                    raise CancelledError
                part = self._tile(tile, window)
            if part is not None:
                layers = np.full((len(part), *shard.box.shape), NO_DATA, np.uint8) if layers is None else layers
                layers[(..., *tile.write_box.slices(shard.box))] = part
                for value in counts:
                    counts[value] += int(np.count_nonzero(part[0] == value))
        return layers

    def _read(self, box: Box, before: _Window | None) -> _Window:
        """Return the pixels of `box`; rows that the tile above has read already are taken from `before`."""
        box = box.clip(self.job.plan.height, self.job.plan.width)
        if before is None or not before.holds_top_of(box):
            return self._read_box(box)
        y = min(before.box.y1, box.y1)
        kept = before.crop(Box(box.y0, box.x0, y, box.x1))
        return kept if y == box.y1 else kept.above(self._read_box(Box(y, box.x0, box.y1, box.x1)))

    def _read_box(self, box: Box) -> _Window:
        found = self._reader.read(box)
        pixels, valid = found.pixels, found.valid
        if not valid.all():
            pixels = np.where(valid[..., None], pixels, self._fill)
        return _Window(box, pixels, valid)

    def _tile(self, tile: Tile, window: _Window) -> NDArray[np.uint8] | None:
        """Return labels and maps (planes, h, w) of a tile's write box, None where none of its pixels is valid."""
        valid = window.valid[tile.write_box.slices(window.box)]
        valid = valid & self._coverage.crop(tile.write_box)
        if not valid.any():
            return None
        pixels = cut(window.pixels, window.box, tile.read_box, self.job.plan.height, self.job.plan.width)
        margins = self.job.plan.margins(tile)
        top, left, bottom, right = margins
        read = tile.read_box
        inner = Box(read.y0 + top, read.x0 + left, read.y1 - bottom, read.x1 - right)
        if self.job.maps:  # their heads lie in whole tiles
            computed = without_margins(self._engine.layers(pixels, self.job.maps), margins)
        else:
            computed = self._engine.labels(pixels, margins)[None]
        return np.where(valid, computed[(..., *tile.write_box.slices(inner))], np.uint8(NO_DATA))


@dataclass(frozen=True)
class _Window:
    """Pixels (h, w, C), filled where invalid, and validity (h, w) of one box of the output grid."""

    box: Box
    pixels: NDArray[Any]
    valid: NDArray[np.bool_]

    def holds_top_of(self, box: Box) -> bool:
        return self.box.y0 <= box.y0 < self.box.y1 and self.box.x0 <= box.x0 and box.x1 <= self.box.x1

    def crop(self, box: Box) -> _Window:
        part = box.slices(self.box)
        return _Window(box, self.pixels[part], self.valid[part])

    def above(self, below: _Window) -> _Window:
        box = Box(self.box.y0, self.box.x0, below.box.y1, below.box.x1)
        return _Window(box, np.concatenate([self.pixels, below.pixels]), np.concatenate([self.valid, below.valid]))


def _fill_values(spec: ModelSpec) -> NDArray[Any]:
    """Return the value per band that stands for missing pixels: the mean, which the network sees as 0."""
    dtype = np.dtype(spec.dtype)
    mean = np.asarray(spec.mean)
    return (np.rint(mean).clip(0, np.iinfo(dtype).max) if dtype.kind == "u" else mean).astype(dtype)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start


_engines: OrderedDict[tuple[str, str, str, int], Engine] = OrderedDict()
_engines_lock = threading.Lock()


def shared_engine(package: Package, *, name: str = "auto", precision: str = "auto", threads: int = 1) -> Engine:
    """Return the process's engine for these settings, made once for all threads and jobs; errors: `choose_engine`."""
    asked = (package.digest, name, precision, threads)
    with _engines_lock:
        if asked not in _engines:
            made = choose_engine(package, name=name, precision=precision, threads=threads)
            exact = (package.digest, made.name, made.precision, made.threads)
            _engines[asked] = _engines.setdefault(exact, made)
            while len(_engines) > _ENGINES_KEPT:
                _engines.popitem(last=False)
        _engines.move_to_end(asked)
        return _engines[asked]


def engine_choice(engine: Engine) -> EngineChoice:
    """Return what identifies an engine's results."""
    return EngineChoice(
        name=engine.name,
        version=engine.version,
        precision=engine.precision,
        threads=engine.threads,
        device=engine.device,
    )


def _planned_engine(package: Package, choice: EngineChoice) -> Engine:
    engine = shared_engine(package, name=choice.name, precision=choice.precision, threads=choice.threads)
    if engine_choice(engine) != choice:
        raise EngineError(
            f"this worker has {engine_choice(engine)}, the job was planned for {choice}; install the same on every node"
        )
    return engine
