"""What every inference engine offers; knows arrays and class values, not which library computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import BandsError, ShapeError
from unetpp.maps import MapName
from unetpp.model.margins import NO_MARGINS, Margins
from unetpp.model.orientations import Tta
from unetpp.package import ModelSpec

T = TypeVar("T", bound=np.generic)
Precision = Literal["fp32", "fp16", "bf16", "int16", "int8"]
Output = Literal["logits", "labels", "heads"]


class Engine(Protocol):
    """One network made ready to run. Threads may call it at once; each runs its own calls one after the other.

    Attributes:
        name: "triton", "native", "openvino" or "torch".
        version: version of the library that computes.
        precision: what the layers store and multiply; normalisation is fp32 in all.
        threads: CPU threads that one call uses.
        device: "cpu" or "cuda".
        any_margins: margins may be any, and as many kinds of them as there are; else they are 0 or multiples of the
            network's, and each kind costs the engine some time to prepare.
        tta: the orientations whose mean probability every result is, see `unetpp.model.turned`.
    """

    name: str
    version: str
    precision: Precision
    threads: int
    device: str
    any_margins: bool
    tta: Tta

    def logits(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.float32]:
        """Return (K, H, W) logits for raw pixels (H, W, C) of the model's sample type, H and W >= 1.

        Sides that are not multiples of the network's are padded and cropped as the network's own forward does. The
        `margins` are left out of the result and, where the engine can, of the work; H and W are multiples then.
        """
        ...

    def labels(self, tile: NDArray[Any], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        """Return (H, W) class values (`ModelSpec.classes[k].value`) for raw pixels (H, W, C).

        Of equal logits the first class wins; a single logit means the second class where it is > 0.
        """
        ...

    def layers(self, tile: NDArray[Any], maps: Sequence[MapName], margins: Margins = NO_MARGINS) -> NDArray[np.uint8]:
        """Return (planes, H, W) uint8 labels and maps of one pass, see `unetpp.engine.maps.layers`."""
        ...

    def release(self) -> None:
        """Give back memory kept for the next call, which then takes it again; for the pause between two jobs."""
        ...


def check_tile(tile: NDArray[Any], spec: ModelSpec) -> None:
    """Raise unless `tile` is (H, W, C) with the model's bands and sample type."""
    bands = len(spec.bands)
    if tile.ndim != 3 or min(tile.shape[:2]) < 1:
        raise ShapeError(f"tile shape {tile.shape}: expected (H, W, {bands}) with H, W >= 1")
    if tile.shape[2] != bands or tile.dtype != spec.dtype:
        raise BandsError(
            f"tile has {tile.shape[2]} bands of {tile.dtype}, model {spec.name!r} reads {bands} of {spec.dtype}"
        )


def pad_tile(tile: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Repeat the last row and column until both sides are multiples, as the network pads whole images."""
    bottom, right = -tile.shape[0] % multiple, -tile.shape[1] % multiple
    return np.pad(tile, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else tile


def without_margins(array: NDArray[T], margins: Margins) -> NDArray[T]:
    """Return (..., H, W) without its margins."""
    top, left, bottom, right = margins
    return array[..., top : -bottom or None, left : -right or None]
