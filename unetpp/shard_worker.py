"""Computes the shards of one job, or tiles of one that another worker has begun; knows no queue.

read     window + halo, see `unetpp.windows`
compute  tile by tile; invalid pixels become 255 and tiles without valid pixels are skipped
write    one Zarr shard, then its commit record
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.durable import file_sha256
from unetpp.engine import choose_engine
from unetpp.engine.base import Engine
from unetpp.errors import EngineError, ModelPackageError, StoreError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.resample import GridReader
from unetpp.job import EngineChoice, SegmentJob
from unetpp.levels import NO_DATA, Levels, chunk_side
from unetpp.lock import FolderLock
from unetpp.missing import fill_values
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.orientations import Tta
from unetpp.package import Package, load_package
from unetpp.shard_object import Chunks, Place
from unetpp.store import LabelStore
from unetpp.tiling import Shard, Tile, cut
from unetpp.turns import OpenShard, Turns
from unetpp.windows import Window, Windows

_ENGINES_KEPT = 4


class ShardWorker:
    """Computes shards of one job, one at a time; open one per thread or process and close it.

    Args:
        stop: when set, the running shard ends before its next tile with `CancelledError`, uncommitted.
        turns: how many shards may compute and be written at once, counted over all workers that are given the same;
            of these, each may help with the shards of the others. With more workers than may compute, some read and
            write meanwhile; each holds one tile's window and what it has computed, compressed.

    Raises:
        ModelPackageError: the model package changed since the job was prepared.
        StoreError: another run is preparing the folder, or did.
        Also what `open_raster` and `choose_engine` raise.
    """

    def __init__(self, job: SegmentJob, stop: threading.Event | None = None, turns: Turns[_Made] | None = None) -> None:
        self.job = job
        self._stop = stop or threading.Event()
        self._turns: Turns[_Made] = turns or Turns(1)
        self._margins = NO_MARGINS  # of the last tile
        self._stores: tuple[Levels, ...] = (LabelStore(job.out, job.plan), *job.map_stores)
        package = load_package(job.package)
        if package.digest != job.model_ref["digest"]:
            raise ModelPackageError(f"{job.package} changed after the job was prepared; run segment again")
        self._engine = _planned_engine(package, job.engine)
        self._fill = fill_values(package.spec.mean, package.spec.dtype)
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
        self._engine.release()

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
        made = self._compute(shard)
        with self._turns.write, _timed(made.seconds, "write"):
            (_, digest, size), *maps = self._write(shard, made.chunks)
        record = CommitRecord(
            shard=shard.id,
            key=self.job.key,
            sha256=digest,
            size=size,
            valid_px=sum(made.counts.values()),
            counts=made.counts,
            attempt=attempt,
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=dict(made.seconds),
            maps={name: {"sha256": sha256, "size": size} for name, sha256, size in maps},
        )
        commit.write(self.job.store, record)
        return record

    def _write(self, shard: Shard, chunks: Sequence[Chunks]) -> list[tuple[str, str | None, int]]:
        """Write labels and maps; returns each array's name and its object's SHA-256 and size."""
        for store in self._stores:
            store.delete_shard(shard)
        if not chunks[0]:
            return [(store.name, None, 0) for store in self._stores]
        written: list[tuple[str, str | None, int]] = []
        for store, own in zip(self._stores, chunks, strict=True):
            path = store.write_chunks(0, shard.row, shard.col, own)
            written.append((store.name, file_sha256(path), path.stat().st_size))
        return written

    def help(self, shard: OpenShard[_Made]) -> None:
        """Compute tiles of a shard that another worker of the same job has begun, as long as there are any.

        Raises:
            CorruptImageError, EngineError: see `run`; the other worker's shard fails by it.
        """
        made = _Made.of(self.job, len(self._stores))
        while (tile := shard.last()) is not None:
            self._add(tile, self._windows([tile]), made)
        shard.made.append(made)

    def _compute(self, shard: Shard) -> _Made:
        """Return labels and maps of the shard's tiles, those computed by helpers included."""
        made = _Made.of(self.job, len(self._stores))
        tiles = [tile for tile in self.job.plan.tiles(shard) if self._coverage.any(tile.write_box)]
        tiles.sort(key=self._order)
        windows = self._windows(tiles)
        with self._turns.opened(self.job, tiles) as opened:
            while (tile := opened.first()) is not None:
                self._add(tile, windows, made)
        for helped in opened.made:
            made.merge(helped)
        return made

    def _margins_of(self, tile: Tile) -> Margins:
        return self.job.plan.margins(tile, exact=self._engine.any_margins)

    def _order(self, tile: Tile) -> tuple[bool, Margins, int]:
        """Sort tiles by what an engine prepares itself for, first what this worker had last, then into strips.

        An engine keeps its buffers for as many kinds of tiles as run at once; those of another, hundreds of megabytes,
        are allocated anew: at the edges of an image a fourth of a tile's time, for every other tile.
        """
        margins = self._margins_of(tile)
        return margins != self._margins, margins, tile.write_box.x0

    def _windows(self, tiles: Sequence[Tile]) -> Windows:
        return Windows(self._read_box, tiles, self.job.plan.height, self.job.plan.width)

    def _add(self, tile: Tile, windows: Windows, made: _Made) -> None:
        """Add one tile to what is made."""
        if self._stop.is_set():
            raise CancelledError
        with _timed(made.seconds, "read"):
            window = windows.read(tile)
        with self._turns.compute, _timed(made.seconds, "compute"):
            if self._stop.is_set():
                raise CancelledError
            part = self._tile(tile, window)
        if part is not None:
            self._encode(tile, part, made.chunks)
            for value in made.counts:
                made.counts[value] += int(np.count_nonzero(part[0] == value))

    def _encode(self, tile: Tile, part: NDArray[np.uint8], chunks: Sequence[dict[Place, bytes]]) -> None:
        """Add labels and maps (planes, h, w) of a tile's write box to the chunks of its shard."""
        shard, side = self.job.plan.shard, chunk_side(self.job.plan)
        row, col = tile.write_box.y0 % shard // side, tile.write_box.x0 % shard // side
        begin = 0
        for store, own in zip(self._stores, chunks, strict=True):
            values = part[begin] if store.planes is None else part[begin : begin + store.planes]
            begin += store.planes or 1
            own.update({(*plane, row + y, col + x): content for (*plane, y, x), content in store.encode(values)})

    def _read_box(self, box: Box) -> Window:
        found = self._reader.read(box)
        pixels, valid = found.pixels, found.valid
        if not valid.all():
            pixels = np.where(valid[..., None], pixels, self._fill)
        return Window(box, pixels, valid)

    def _tile(self, tile: Tile, window: Window) -> NDArray[np.uint8] | None:
        """Return labels and maps (planes, h, w) of a tile's write box, None where none of its pixels is valid."""
        valid = window.valid[tile.write_box.slices(window.box)]
        valid = valid & self._coverage.crop(tile.write_box)
        if not valid.any():
            return None
        pixels = cut(window.pixels, window.box, tile.read_box, self.job.plan.height, self.job.plan.width)
        margins = self._margins = self._margins_of(tile)
        top, left, bottom, right = margins
        read = tile.read_box
        inner = Box(read.y0 + top, read.x0 + left, read.y1 - bottom, read.x1 - right)
        if self.job.maps:
            computed = self._engine.layers(pixels, self.job.maps, margins)
        else:
            computed = self._engine.labels(pixels, margins)[None]
        return np.where(valid, computed[(..., *tile.write_box.slices(inner))], np.uint8(NO_DATA))


@dataclass(frozen=True)
class _Made:
    """What one thread has made of a shard: chunks of labels and of each map, pixels per class, seconds per stage.

    A shard is open for many seconds, most of them waiting for its tiles; plain, its labels would take 17 MB all along.
    """

    chunks: list[dict[Place, bytes]]
    counts: dict[int, int]
    seconds: defaultdict[str, float]

    @classmethod
    def of(cls, job: SegmentJob, stores: int) -> _Made:
        counts = dict.fromkeys((info.value for info in job.classes), 0)
        return cls([{} for _ in range(stores)], counts, defaultdict(float))

    def merge(self, other: _Made) -> None:
        for own, found in zip(self.chunks, other.chunks, strict=True):
            own.update(found)
        for value, count in other.counts.items():
            self.counts[value] += count
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start


_engines: OrderedDict[tuple[str, str, str, int, str], Engine] = OrderedDict()
_engines_lock = threading.Lock()


def shared_engine(
    package: Package, *, name: str = "auto", precision: str = "auto", threads: int = 1, tta: Tta = "none"
) -> Engine:
    """Return the process's engine for these settings, made once for all threads and jobs; errors: `choose_engine`."""
    asked = (package.digest, name, precision, threads, tta)
    with _engines_lock:
        if asked not in _engines:
            made = choose_engine(package, name=name, precision=precision, threads=threads, tta=tta)
            exact = (package.digest, made.name, made.precision, made.threads, made.tta)
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
        tta=engine.tta,
    )


def _planned_engine(package: Package, choice: EngineChoice) -> Engine:
    engine = shared_engine(
        package, name=choice.name, precision=choice.precision, threads=choice.threads, tta=choice.tta
    )
    if engine_choice(engine) != choice:
        raise EngineError(
            f"this worker has {engine_choice(engine)}, the job was planned for {choice}; install the same on every node"
        )
    return engine
