"""Runs a network in plain torch, on the CPU or one CUDA device; the definition, and slow on CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetpp.allocation import keep_freed_memory
from unetpp.engine.base import Output, Precision, check_tile, pad_tile, without_margins
from unetpp.engine.maps import decide, layers
from unetpp.engine.network import TileNetwork, tile_networks
from unetpp.errors import EngineError
from unetpp.maps import MapName
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.orientations import Tta
from unetpp.model.turned import averaged
from unetpp.package import Package


class TorchEngine:
    """See `unetpp.engine.base.Engine`.

    Args:
        package: the model.
        precision: bf16 stores weights and activations in bf16; fp32 on CUDA never uses TF32.
        threads: CPU threads of one call; torch keeps one such number per process.
        device: "cpu" or "cuda".
        tta: see `unetpp.model.turned`.
    """

    name = "torch"
    any_margins = False

    def __init__(
        self,
        package: Package,
        *,
        precision: Precision = "fp32",
        threads: int = 1,
        device: str = "cpu",
        tta: Tta = "none",
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError("no CUDA device is visible to torch; use --engine openvino")
        if device == "cpu":
            keep_freed_memory()
        self.version: str = str(torch.__version__)
        self.precision = precision
        self.threads = threads
        self.device = device
        self.tta = tta
        self.spec = package.spec
        self.multiple = package.spec.architecture.multiple
        networks = tile_networks(package.load_model(), self.spec)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._networks: dict[Output, TileNetwork] = {output: network.to(device) for output, network in networks.items()}
        for network in self._networks.values():
            network.network.to(dtype)
        self._flags = threading.Lock()

    def logits(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.float32]:
        return without_margins(self._run("logits", tile), margins)

    def labels(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        return without_margins(self._run("labels", tile), margins)

    def layers(self, tile: NDArray[Any], maps: Sequence[MapName], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        output: Output = "heads" if "uncertainty" in maps else "logits"
        values = self._networks[output].values
        planes = self._run(output, tile, lambda x: layers(x if x.ndim == 4 else x[None], values, maps))
        return without_margins(planes, margins)

    def release(self) -> None:
        """Nothing: plain torch keeps no buffers between calls."""

    def _run(
        self, output: Output, tile: NDArray[Any], finish: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> NDArray[Any]:
        check_tile(tile, self.spec)
        height, width = tile.shape[:2]
        pixels = np.ascontiguousarray(pad_tile(tile, self.multiple))
        with torch.inference_mode():
            if self.device == "cpu":
                if torch.get_num_threads() != self.threads:
                    torch.set_num_threads(self.threads)
                result = self._computed(output, torch.from_numpy(pixels))
                result = finish(result) if finish else result
            else:
                # These flags belong to the process, so that GPU calls of several threads take turns.
                with self._flags, torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                    result = self._computed(output, torch.from_numpy(pixels).to(self.device))
                    result = (finish(result) if finish else result).cpu()
        array: NDArray[Any] = result[..., :height, :width].contiguous().numpy()
        return array

    def _computed(self, output: Output, pixels: torch.Tensor) -> torch.Tensor:
        if self.tta == "none":
            return self._networks[output](pixels)  # type: ignore[no-any-return]
        if pixels.dtype != torch.uint8:
            pixels = pixels.float()  # torch mirrors no uint16 on a device; float32 holds every one of them
        logits = averaged(self._networks["heads" if output == "heads" else "logits"], pixels, self.tta, (0, 1))
        return decide(logits, self._networks["labels"].values) if output == "labels" else logits
