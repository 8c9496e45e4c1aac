"""Runs a network on CPUs through OpenVINO: the plain definition, exported once; knows no Raster, Zarr or tile plan.

The exported graph is kept on disk, and made by another process where it is not there: torch would stay in this one. It
is compiled per tile shape, once for each call that runs at the same time: requests of one compiled graph share one
stream and would wait for each other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetpp.engine.averaging import averaged_tile
from unetpp.engine.base import Output, Precision, check_tile, pad_tile
from unetpp.engine.blocked import in_blocks, wants_blocks
from unetpp.engine.exporter import Exporter, GraphKey, normalised_in_graph
from unetpp.engine.exporting_process import ExportingProcess
from unetpp.engine.graphs import KeptGraphs
from unetpp.errors import EngineError, ShapeError
from unetpp.maps import MapName
from unetpp.model.margins import NO_MARGINS, Margins, strip_count
from unetpp.model.orientations import Tta
from unetpp.package import Package
from unetpp.processor import cpu_flags

if TYPE_CHECKING:
    pass

_HINTS: Final = {"fp32": "f32", "bf16": "bf16"}
_COMPILED_SHAPES: Final = 8
"""Compiled graphs kept per concurrent call: interior tiles, those at the edges and images of several sizes take turns.
Without its buffers one takes 15 MB, and half a second to make."""

_Key = tuple[Output, tuple[int, int], Margins]
_first_use = threading.Lock()


def import_openvino() -> Any:
    """Import openvino with its usage statistics off (it would send them over the network) and ready for threads.

    Its table of NumPy's types is made on first use, in a C++ static whose guard one thread holds while it waits for
    Python's lock, which another thread holds while it waits for the guard: two first calls at once never returned.

    Raises:
        EngineError: openvino is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"OpenVINO does not import ({error}); install openvino or use --engine torch") from error
    with _first_use:
        openvino.Type.u8.to_dtype()
    return openvino


def openvino_version() -> str | None:
    """Return the installed version, or None, without importing it."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


class OpenVinoEngine:
    """See `unetpp.engine.base.Engine`.

    Args:
        package: the model.
        precision: set explicitly; left alone, OpenVINO drops to bf16 wherever the CPU has it.
        threads: CPU threads of one call. Calls from several threads run side by side, with this many each.
        tta: see `unetpp.model.turned`.
    """

    name = "openvino"
    device = "cpu"
    any_margins = False

    def __init__(self, package: Package, *, precision: Precision = "fp32", threads: int = 1, tta: Tta = "none") -> None:
        self._openvino = import_openvino()
        self.version: str = openvino_version() or self._openvino.__version__
        self.precision = precision
        self.threads = threads
        self.tta = tta
        self.spec = package.spec
        self.multiple = package.spec.architecture.multiple
        self._values = tuple(info.value for info in self.spec.classes)
        self._raw_in_graph = normalised_in_graph(self.spec)
        self._mean = np.asarray(self.spec.mean, np.float32)
        self._std = np.asarray(self.spec.std, np.float32)
        self._graphs: dict[GraphKey, Any] = {}
        self._exporting = threading.Lock()
        self._core = self._openvino.Core()
        self._kept = KeptGraphs(package.digest)
        self._exporter = Exporter(package)
        self._elsewhere = ExportingProcess(package, self._kept)
        if not self._kept.known() and not (tta == "none" and self._elsewhere.load()):  # turning takes torch here
            self._exporter.load()  # better known at once where weights are damaged
        self._pool = _RequestPool()

    def logits(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.float32]:
        return self._run("logits", tile, margins)

    def labels(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        return self._run("labels", tile, margins)

    def layers(self, tile: NDArray[Any], maps: Sequence[MapName], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        """See `Engine`. Logits become bytes outside the graph, which would take bf16 for that too."""
        import torch

        from unetpp.engine.maps import layers

        found = torch.from_numpy(self._run("heads" if "uncertainty" in maps else "logits", tile, margins))
        heads = found if found.ndim == 4 else found[None]
        planes: NDArray[np.uint8] = layers(heads, self._values, maps).numpy()
        return planes

    def release(self) -> None:
        self._pool.release()

    def _run(self, output: Output, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[Any]:
        check_tile(tile, self.spec)
        height, width = tile.shape[:2]
        pixels = pad_tile(tile, self.multiple)
        if any(margins) and pixels is not tile:
            raise ShapeError(f"tile {height} x {width} with margins: its sides must be multiples of {self.multiple}")
        if not self._raw_in_graph:
            pixels = (pixels.astype(np.float32) - self._mean) / self._std
        found = self._infer(output, pixels, margins) if self.tta == "none" else self._averaged(output, pixels, margins)
        return np.ascontiguousarray(found[..., :height, :width])

    def _averaged(self, output: Output, pixels: NDArray[Any], margins: Margins) -> NDArray[Any]:
        each: Output = "heads" if output == "heads" else "logits"
        logits = averaged_tile(lambda image, inner: self._infer(each, image, inner), pixels, margins, self.tta)
        if output != "labels":
            return logits
        import torch

        from unetpp.engine.maps import decide

        labels: NDArray[np.uint8] = decide(torch.from_numpy(logits), self._values).numpy()
        return labels

    def _infer(self, output: Output, pixels: NDArray[Any], margins: Margins) -> NDArray[Any]:
        key: _Key = (output, (pixels.shape[0], pixels.shape[1]), margins)
        with self._request(key) as request:
            result = request.infer([np.ascontiguousarray(pixels)], share_inputs=True, share_outputs=True)[0]
            # The result is the request's own buffer, which its next call overwrites.
            return np.array(result)

    @contextmanager
    def _request(self, key: _Key) -> Iterator[Any]:
        """Lend a request that no other call uses; it goes back whatever happens."""
        request = self._pool.take(key)
        try:
            if request is None:
                request = self._compile(*key).create_infer_request()
            yield request
        finally:
            self._pool.give(key, request)

    def _compile(self, output: Output, shape: tuple[int, int], margins: Margins) -> Any:
        graph = self._graph(output, margins, strip_count(shape[0] - margins[0] - margins[2])).clone()
        graph.reshape([*shape, len(self.spec.bands)])
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = self._core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            size = f"{shape[0]} x {shape[1]}"
            raise EngineError(f"OpenVINO cannot compile a {size} tile: {_first_line(error)}") from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != _HINTS[self.precision]:
            raise EngineError(f"OpenVINO computes in {used} here, not {self.precision}; choose another --precision")
        return compiled

    def _read(self, graph: bytes, weights: bytes) -> Any:
        return self._core.read_model(in_blocks(graph) if wants_blocks(cpu_flags()) else graph, weights)

    def _graph(self, output: Output, margins: Margins, strips: int) -> Any:
        """Return the exported function with open height and width; has it exported on first use."""
        key = GraphKey(output, margins, strips)
        with self._elsewhere.wanted(), self._exporting:
            if key not in self._graphs:
                self._graphs[key] = self._kept.get(
                    key.name,
                    self._read,
                    make=lambda: self._exporter.graph(key),
                    kept=lambda: self._elsewhere.keep(key),
                )
            return self._graphs[key]


@dataclass
class _Idle:
    """A request that waits for its next call; `buffers` says whether it still holds every layer's."""

    key: _Key
    request: Any
    buffers: bool = True


class _RequestPool:
    """Requests that wait for their next call, the least recently used first.

    They belong to the engine, not to threads: threads come and go with every run, and a thread that ends would destroy
    its compiled graphs while others compute. Buffers, hundreds of megabytes a graph, are kept for as many graphs as
    run at once; an older one gives its buffers back, which costs its next call far less than compiling.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[_Idle] = []
        self._busy = self._peak = 0

    def take(self, key: _Key) -> Any | None:
        """Return a free request of `key`, or None: the caller then makes one."""
        with self._lock:
            self._busy += 1
            self._peak = max(self._peak, self._busy)
            found = next((idle for idle in reversed(self._free) if idle.key == key), None)
            # Room is made before the caller allocates.
            if found is None:
                del self._free[: max(0, len(self._free) - _COMPILED_SHAPES * self._peak + self._busy)]
            else:
                self._free.remove(found)
            self._empty(keep=self._peak - self._busy)
            return None if found is None else found.request

    def give(self, key: _Key, request: Any | None) -> None:
        """Take back what a call used; None where it could not be made."""
        with self._lock:
            self._busy -= 1
            if request is not None:
                self._free.append(_Idle(key, request))

    def release(self) -> None:
        """Give the buffers of all waiting requests back."""
        with self._lock:
            self._empty(keep=0)

    def _empty(self, keep: int) -> None:
        full = [idle for idle in self._free if idle.buffers]
        for idle in full[: max(0, len(full) - keep)]:
            idle.request.get_compiled_model().release_memory()
            idle.buffers = False


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
