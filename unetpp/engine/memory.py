"""Estimates the memory of network calls from the network's switches and the size of a tile; measures nothing.

Engines do not say what they will take. The factors are measured, on one to two workers and tiles of 384 to 1280 px of
the bundled networks in fp32: OpenVINO and torch took 0.8 to 1.1 times the estimate. bf16 is what a whole run took. The
native engine's memory is its own: it is counted.
"""

from __future__ import annotations

import math
from typing import Final

from unetpp.engine.base import Precision
from unetpp.model import halo
from unetpp.model.config import GridConfig
from unetpp.model.margins import context, strip_count
from unetpp.model.order import order_of
from unetpp.model.orientations import Tta
from unetpp.native.need import Region
from unetpp.native.rows import RAW
from unetpp.native.schedule import Schedule
from unetpp.native.target import Target, target_of
from unetpp.package import ModelSpec

_BYTES: Final[dict[Precision, float]] = {"fp32": 4, "bf16": 3, "fp16": 2}
"""Of a channel's pixel. OpenVINO holds some maps in fp32 beside bf16: it takes three quarters of what fp32 does."""
_OPENVINO, _TORCH = 1.15, 2.7
"""What an engine takes for each byte of the maps: OpenVINO copies in other layouts, torch also what it concatenates."""
_LOGITS = 12
"""Float32 arrays of all classes that averaging orientations and making maps take."""


def call_bytes(
    spec: ModelSpec, engine: str, precision: Precision, tile_shape: tuple[int, int], tta: Tta = "none", *, maps: bool
) -> float:
    """Return about how many bytes one call of a CPU engine holds at its peak.

    Args:
        tile_shape: (height, width) of the read box in pixels. Its margins, which save little memory, do not count.
        maps: class probabilities or uncertainty are made as well.
    """
    classes = max(2, spec.architecture.classes) if maps or tta != "none" else 0
    more = 4 * _LOGITS * classes * math.prod(tile_shape)
    if engine == "native":
        return _native(spec, precision, tile_shape, maps) + more
    strips = strip_count(tile_shape[0]) if engine == "openvino" else 1
    values = _channels(spec, tile_shape[0], strips) * math.prod(tile_shape)
    layers = values * _BYTES[precision] * (_OPENVINO if engine == "openvino" else _TORCH)
    return layers + more


def _native(spec: ModelSpec, precision: Precision, tile_shape: tuple[int, int], maps: bool) -> float:
    """Return what a stream allocates, and the tile's pixels and result."""
    target = target_of(precision)
    if isinstance(target, str):  # of another machine
        target = Target(16, "fp32" if precision == "fp16" else precision)
    multiple, last = spec.architecture.multiple, spec.architecture.last
    shape = tuple(-(-side // multiple) * multiple for side in tile_shape)
    every = maps and spec.architecture.deep_supervision and spec.network == "unetplusplus"
    heads = tuple((0, j) for j in range(1 if every else last, last + 1))
    height, width = shape
    whole = Region(0, 0, height, width)
    # With margins the first band already holds what lies above it.
    top, left = (min(halo(spec.architecture), (side - 1) // 2) for side in shape)
    inner = Region(top, left, height - top, width - left)
    stream = max(Schedule(spec, target, (height, width), part, heads).bytes for part in (whole, inner))
    return stream + math.prod(shape) * (1 + len(spec.bands) * RAW[spec.dtype][1])


def _channels(spec: ModelSpec, rows: int, strips: int) -> float:
    """Return the channels of all maps of a call, in maps of the tile's size: level 1 counts a quarter.

    The decoder nodes of level 0, and what one of them has between its convolutions, are there for one strip at a time.
    """
    config: GridConfig = spec.architecture
    nodes = [step.node for step in order_of(spec.network, config)]
    whole = sum(config.filters[i] / 4.0**i for i, j in nodes if i or not j)
    finest = config.filters[0] * (1 + sum(1 for i, j in nodes if not i and j))
    share = 1.0 if strips == 1 else 1 / strips + 2 * context(config, 0) / rows
    return whole + finest * share
