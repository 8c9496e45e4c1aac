"""Runs a network on x86-64 CPUs through machine code made for it (see `unetpp.native`); knows no Raster or tile plan.

It needs no torch, holds some tens of megabytes whatever the height of a tile, and computes no node further out than the
result needs. Networks and CPUs that there is no machine code for run in OpenVINO.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.engine.averaging import averaged_tile
from unetpp.engine.base import Precision, check_tile, pad_tile
from unetpp.errors import EngineError, ShapeError
from unetpp.maps import MapName
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.order import Name
from unetpp.model.orientations import Tta
from unetpp.native.need import Region
from unetpp.native.network import Network
from unetpp.native.stream import Stream
from unetpp.native.support import why_not
from unetpp.native.target import target_of
from unetpp.package import Package

_Key = tuple[tuple[int, int], Region, tuple[Name, ...]]


class NativeEngine:
    """See `unetpp.engine.base.Engine`.

    Args:
        package: the model.
        precision: bf16 stores maps and the weights of pointwise convolutions in bf16, int16 and int8 in words and bytes
            (see `unetpp.native.quantize`); every other sum is fp32.
        threads: CPU threads of one call, which share a tile's columns among them.
        tta: see `unetpp.model.turned`.

    Raises:
        EngineError: there is no machine code for this network or CPU.
    """

    name = "native"
    device = "cpu"
    any_margins = True

    def __init__(self, package: Package, *, precision: Precision = "fp32", threads: int = 1, tta: Tta = "none") -> None:
        reason = why_not(package.spec, precision)
        target = target_of(precision)
        if reason is not None or isinstance(target, str):
            raise EngineError(f"the native engine cannot run this model here: {reason}; use --engine openvino")
        # Sums of bf16 pairs and of AMX's tiles differ in their last bits: a job's machines must be of one kind. Others
        # are the same everywhere.
        self.version = llvm_version() + (("+amx" if target.tiles else "+avx512") if target.stored == "bf16" else "")
        self.precision = precision
        self.threads = threads
        self.tta = tta
        self.spec = package.spec
        self.multiple = package.spec.architecture.multiple
        self._values = tuple(info.value for info in self.spec.classes)
        self._network = Network(package, target)
        self._last: tuple[Name, ...] = ((0, package.spec.architecture.last),)
        self._streams = _StreamPool(self._network)
        self._threads = ThreadPoolExecutor(threads, "unetpp-native") if threads > 1 else None

    def logits(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.float32]:
        pixels, result = self._prepared(tile, margins)
        found = (
            self._averaged(pixels, result, self._last)[-1]
            if self.tta != "none"
            else self._logits(pixels, result, self._last)[0]
        )
        return np.ascontiguousarray(found)

    def labels(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        pixels, result = self._prepared(tile, margins)
        if self.tta == "none":
            return self._joined(lambda stream: stream.labels(pixels), pixels, result, self._last)
        import torch

        from unetpp.engine.maps import decide

        labels: NDArray[np.uint8] = decide(
            torch.from_numpy(self._averaged(pixels, result, self._last)[-1]), self._values
        ).numpy()
        return labels

    def layers(self, tile: NDArray[Any], maps: Sequence[MapName], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        import torch

        from unetpp.engine.maps import layers

        pixels, result = self._prepared(tile, margins)
        every = tuple(self._network.heads) if "uncertainty" in maps else self._last
        heads = self._averaged(pixels, result, every) if self.tta != "none" else self._logits(pixels, result, every)
        planes: NDArray[np.uint8] = layers(torch.from_numpy(heads), self._values, maps).numpy()
        return planes

    def release(self) -> None:
        self._streams.release()

    def _prepared(self, tile: NDArray[Any], margins: Margins) -> tuple[NDArray[Any], Region]:
        """Return the pixels that the network sees, and the part of them that is wanted."""
        check_tile(tile, self.spec)
        height, width = tile.shape[:2]
        pixels = np.ascontiguousarray(pad_tile(tile, self.multiple))
        if any(margins) and pixels.shape != tile.shape:
            raise ShapeError(f"tile {height} x {width} with margins: its sides must be multiples of {self.multiple}")
        top, left, bottom, right = margins
        if min(margins) < 0 or top + bottom >= height or left + right >= width:
            raise ShapeError(f"tile {height} x {width}: margins {margins} leave nothing of it")
        return pixels, Region(top, left, height - bottom, width - right)

    def _logits(self, pixels: NDArray[Any], result: Region, heads: tuple[Name, ...]) -> NDArray[np.float32]:
        return self._joined(lambda stream: stream.logits(pixels), pixels, result, heads)

    def _averaged(self, pixels: NDArray[Any], result: Region, heads: tuple[Name, ...]) -> NDArray[np.float32]:
        """Return (L, K, h, w) log mean probabilities."""
        height, width = pixels.shape[:2]
        margins = (result.y0, result.x0, height - result.y1, width - result.x1)

        def run(image: NDArray[Any], inner: Margins) -> NDArray[np.float32]:
            top, left, bottom, right = inner
            part = Region(top, left, image.shape[0] - bottom, image.shape[1] - right)
            return self._logits(image, part, heads)

        return averaged_tile(run, pixels, margins, self.tta)

    def _joined(
        self, run: Callable[[Stream], NDArray[Any]], pixels: NDArray[Any], result: Region, heads: tuple[Name, ...]
    ) -> NDArray[Any]:
        """Run every thread's columns and put them beside each other."""
        shape = (pixels.shape[0], pixels.shape[1])

        def part(columns: Region) -> NDArray[Any]:
            with self._streams.lent((shape, columns, heads)) as stream:
                return run(stream)

        if self._threads is None:
            return part(result)
        return np.concatenate(list(self._threads.map(part, columns_of(result, self.threads))), axis=-1)


def llvm_version() -> str:
    """Return the version of what makes the machine code, without importing it."""
    try:
        return version("llvmlite")
    except PackageNotFoundError:  # built in place
        return ""


def columns_of(result: Region, parts: int) -> list[Region]:
    """Return up to so many parts of about equal width, an even number of columns each but for the last."""
    width = result.x1 - result.x0
    edges = [result.x0 + width * number // parts // 2 * 2 for number in range(parts)]
    starts = sorted(set(edges))
    return [result._replace(x0=a, x1=b) for a, b in zip(starts, [*starts[1:], result.x1], strict=True)]


class _StreamPool:
    """Streams that wait for their next call, the least recently used first.

    There are as many as calls that ran at the same time: another kind of tile takes some milliseconds to make ready.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._free: list[tuple[_Key, Stream]] = []
        self._busy = self._peak = 0

    @contextmanager
    def lent(self, key: _Key) -> Iterator[Stream]:
        """Lend a stream that no other call uses."""
        with self._lock:
            self._busy += 1
            self._peak = max(self._peak, self._busy)
            place = next((n for n, (other, _) in enumerate(self._free) if other == key), None)
            found = None if place is None else self._free.pop(place)[1]
            del self._free[: max(0, len(self._free) + self._busy - self._peak)]  # before another takes memory
        try:
            stream = found or Stream(self._network, *key)
            yield stream
        finally:
            with self._lock:
                self._busy -= 1
        with self._lock:
            self._free.append((key, stream))

    def release(self) -> None:
        """Forget all that wait."""
        with self._lock:
            self._free.clear()
