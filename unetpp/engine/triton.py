"""Runs a network on one CUDA device through the fused kernels; knows no Raster, Zarr or tile plan.

Bytes go to the device and class values come back. Per tile shape the whole network is one captured CUDA graph, so that
a tile costs one launch on the host.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from unetpp.engine.base import Precision, check_tile, pad_tile, without_margins
from unetpp.engine.maps import decide, layers
from unetpp.errors import EngineError
from unetpp.maps import MapName
from unetpp.model.deploy import Deployed, deploy
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.orientations import Tta
from unetpp.model.turned import averaged
from unetpp.package import ModelSpec, Package
from unetpp_kernels import device_implementation, forced

_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_GRAPHS: Final = 4
"""Captured shapes kept; each holds every layer's feature maps."""
_MOST_ERROR: Final = 0.2
"""Relative error of logits on noise, far above what bf16 does and far below what a wrong kernel does."""


_Function = Literal["logits", "labels"] | tuple[MapName, ...]
"""What a captured graph computes; a tuple: labels and these maps."""


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    result: torch.Tensor


class TritonEngine:
    """See `unetpp.engine.base.Engine`. Calls of several threads take turns on the device.

    Args:
        package: the model.
        precision: "fp16" sums depthwise taps in fp16 too, "bf16" and "fp32" in fp32. fp32 multiplies matrices as three
            tf32 products unless torch's matmul precision is "medium".
        threads: recorded; nothing here runs on more than one.
        tta: see `unetpp.model.turned`; all orientations are part of the captured graph.

    Raises:
        EngineError: no CUDA device with kernels, or they overflow or disagree with plain torch there.
    """

    name = "triton"
    any_margins = False
    device = "cuda"

    def __init__(self, package: Package, *, precision: Precision = "fp16", threads: int = 1, tta: Tta = "none") -> None:
        if not torch.cuda.is_available():
            raise EngineError("no CUDA device is visible to torch; use --engine openvino")
        implementation, why = device_implementation(torch.device("cuda"))
        if implementation != "triton":
            raise EngineError(f"the fused kernels do not run here: {why}; use --engine torch")
        import triton
        from triton.errors import TritonError

        self.version: str = f"{triton.__version__} torch {torch.__version__}"
        self.precision = precision
        self.threads = threads
        self.tta = tta
        self.spec = package.spec
        self.multiple = package.spec.architecture.multiple
        self._network = _deployed(package, _DTYPES[precision]).to(self.device)
        self._graphs: OrderedDict[tuple[_Function, tuple[int, ...]], _Captured] = OrderedDict()
        self._turn = threading.Lock()
        try:
            self._check_against_torch(package)
        except TritonError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise EngineError(f"the fused kernels do not compile here: {reason}; use --engine torch") from error

    def logits(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.float32]:
        return without_margins(self._run("logits", tile), margins)

    def labels(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        return without_margins(self._run("labels", tile), margins)

    def layers(self, tile: NDArray[Any], maps: Sequence[MapName], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        return without_margins(self._run(tuple(maps), tile), margins)

    def release(self) -> None:
        """Nothing: captured graphs are worth more than the device's memory between two jobs."""

    def _run(self, output: _Function, tile: NDArray[Any]) -> NDArray[Any]:
        check_tile(tile, self.spec)
        height, width = tile.shape[:2]
        pixels = np.ascontiguousarray(pad_tile(tile, self.multiple)[None])
        if self.spec.dtype != "uint8":
            pixels = pixels.astype(np.float32)  # torch moves no uint16 to a device
        with self._turn:
            captured = self._captured(output, pixels.shape)
            captured.pixels.copy_(torch.from_numpy(pixels))
            captured.graph.replay()
            result = captured.result.cpu()
        array: NDArray[Any] = result[0, ..., :height, :width].contiguous().numpy()
        return array

    def _captured(self, output: _Function, shape: tuple[int, ...]) -> _Captured:
        key = (output, shape)
        if key not in self._graphs:
            while len(self._graphs) >= _GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(output, shape)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _capture(self, output: _Function, shape: tuple[int, ...]) -> _Captured:
        dtype = torch.uint8 if self.spec.dtype == "uint8" else torch.float32
        run = self._function(output)
        pixels = torch.zeros(shape, dtype=dtype, device=self.device)
        # Kernels compile at their first launch, and capturing forbids that: so one run before, on a side stream.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(pixels)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run(pixels)
        return _Captured(graph, pixels, result)

    def _function(self, output: _Function) -> Callable[[torch.Tensor], torch.Tensor]:
        values = [info.value for info in self.spec.classes]
        if output == "labels" and self.tta == "none":
            return self._network.labels
        every_head = not isinstance(output, str) and "uncertainty" in output

        def heads(pixels: torch.Tensor) -> torch.Tensor:
            return torch.cat(self._network.heads(pixels)) if every_head else self._network.logits(pixels)

        def run(pixels: torch.Tensor) -> torch.Tensor:
            logits = averaged(heads, pixels, self.tta, (1, 2))
            if output == "logits":
                return logits
            return (decide(logits[0], values) if output == "labels" else layers(logits, values, output))[None]

        return run

    def _check_against_torch(self, package: Package) -> None:
        """Run noise of the training images' mean and spread through the kernels and through plain torch in fp32."""
        generator = torch.Generator().manual_seed(0)
        side = 8 * self.multiple
        mean, std = torch.tensor(self.spec.mean), torch.tensor(self.spec.std)
        noise = torch.randn(1, side, side, len(mean), generator=generator)
        network = package.load_model().to(self.device).eval()
        with torch.no_grad(), forced("torch"):
            truth = network(noise.permute(0, 3, 1, 2).to(self.device)).double()
        found = self._network.logits((noise * std + mean).to(self.device)).double()
        if not torch.isfinite(found).all():
            raise EngineError(f"model {self.spec.name!r} overflows in {self.precision}; use --precision bf16")
        error = float((found - truth).norm() / truth.norm())
        if error > _MOST_ERROR:
            raise EngineError(
                f"the fused kernels differ from torch by {error:.0%} on this device with model {self.spec.name!r}; "
                "use --engine torch and report it"
            )


def _deployed(package: Package, dtype: torch.dtype) -> Deployed:
    spec: ModelSpec = package.spec
    values = [info.value for info in spec.classes]
    return deploy(package.load_model(), mean=spec.mean, std=spec.std, values=values, dtype=dtype)
