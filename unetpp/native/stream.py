"""Runs a network over an image from top to bottom, in memory of its own; knows a schedule, not why it is that one."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetpp.model.order import Name, Step
from unetpp.native import head, node
from unetpp.native.memory import Arena
from unetpp.native.need import Region
from unetpp.native.network import Network
from unetpp.native.program import program
from unetpp.native.schedule import Schedule

_EVERY: Final = 1 << 62
"""Rows of a map that are kept where all are: of the image."""


class Stream:
    """One network made ready for images of one shape. It holds all memory that a run takes but image and result.

    Arguments are those of `Schedule`.
    """

    def __init__(self, network: Network, shape: tuple[int, int], result: Region, heads: tuple[Name, ...]) -> None:
        self._network = network
        self._schedule = schedule = Schedule(network.spec, network.target, shape, result, heads)
        self._memory = Arena(schedule.bytes)
        self._maps = {name: self._map(name) for name in schedule.regions}
        self._blocks = {step.node: self._arguments(step) for step in schedule.steps}
        self._heads = [self._head_arguments(name) for name in heads]
        self._programs: dict[str, NDArray[np.int64]] = {}

    def labels(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return (h, w) class values of the one wanted head, of raw pixels (H, W, C), C-contiguous."""
        y0, x0, y1, x1 = self._schedule.result
        assert len(self._heads) == 1  # another one would write where it wrote before
        found = np.empty((y1 - y0, x1 - x0), np.uint8)
        self._aim(self._heads[0], found)
        self._run(image, head.LABELS)
        return found

    def logits(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Return (heads, K, h, w) logits of the wanted heads."""
        y0, x0, y1, x1 = self._schedule.result
        classes = self._network.spec.architecture.classes
        found = np.empty((len(self._heads), classes, y1 - y0, x1 - x0), np.float32)
        for facts, planes in zip(self._heads, found, strict=True):
            self._aim(facts, planes[0])
            facts[head.SLOTS["plane"]] = planes.strides[0]
        self._run(image, head.LOGITS)
        return found

    def _aim(self, facts: NDArray[np.int64], plane: NDArray[Any]) -> None:
        """Have a head write to a plane (h, w)."""
        pitch, pixel = plane.strides
        y0, x0 = self._schedule.result[:2]
        facts[head.SLOTS["to"]] = plane.ctypes.data - y0 * pitch - x0 * pixel
        facts[head.SLOTS["to_pitch"]] = pitch

    def _run(self, image: NDArray[Any], what: str) -> None:
        schedule, spec = self._schedule, self._network.spec
        assert image.shape == (*schedule.shape, len(spec.bands)) and image.dtype == spec.dtype, image.shape
        assert image.flags.c_contiguous
        source = node.SLOTS["source"]
        for facts in self._blocks.get((0, 0), ()):
            facts[source : source + 3] = image.ctypes.data, image.strides[0], _EVERY
        if what not in self._programs:
            self._programs[what] = self._program(what)
        calls = self._programs[what]
        self._network.run(calls.ctypes.data, len(calls))

    def _program(self, what: str) -> NDArray[np.int64]:
        """Return the calls of a run: of every band, the blocks of every node, then the heads."""
        schedule, functions = self._schedule, self._network.functions
        calls = []
        above, top = {name: region.y0 for name, region in schedule.regions.items()}, schedule.result.y0
        for bottom, below in zip(schedule.bottoms, schedule.ends, strict=True):
            for name, blocks in self._blocks.items():
                if below[name] > above[name]:
                    function, fresh = (
                        functions[self._network.shapes[name].name],
                        above[name] == schedule.regions[name].y0,
                    )
                    calls += [(function, facts.ctypes.data, above[name], below[name], fresh) for facts in blocks]
            calls += [(functions[what], facts.ctypes.data, top, bottom, False) for facts in self._heads]
            above, top = below, bottom
        return program(calls)

    def _map(self, name: Name) -> dict[str, int]:
        """Make a map's memory; its address is where pixel (0, 0) would be."""
        schedule = self._schedule
        start = self._memory.take(schedule.map_bytes(name)) - schedule.regions[name].x0 * schedule.pixel(name)
        return {"map": start, "pitch": schedule.pitch(name), "rows": schedule.rows[name]}

    def _arguments(self, step: Step) -> list[NDArray[np.int64]]:
        """Return the arguments of a node's function for each block of columns."""
        level, (height, width) = step.node[0], self._schedule.shape
        known = {
            **self._network.arguments[step.node],
            **self._maps[step.node],
            "height": height >> level,
            "width": width >> level,
            "count": len(step.sources),
        }
        if step.low is not None:
            low = self._maps[step.low]
            known |= {"low": low["map"], "low_pitch": low["pitch"], "low_rows": low["rows"]}
        found = []
        for left, right in self._schedule.columns(step.node):
            scratch = self._memory.take(self._network.scratches[step.node].size)
            facts = _array(known | {"left": left, "right": right, "scratch": scratch}, node.SLOTS, node.ARGUMENTS)
            for number, name in enumerate(step.sources):
                place = node.SLOTS["source"] + 3 * number
                facts[place : place + 3] = tuple(self._maps[name].values())
            found.append(facts)
        return found

    def _head_arguments(self, name: Name) -> NDArray[np.int64]:
        left, right = self._schedule.result.x0, self._schedule.result.x1
        known = {"left": left, "right": right, "scratch": self._memory.take(self._schedule.head_bytes())}
        return _array(self._network.heads[name] | self._maps[name] | known, head.SLOTS, len(head.SLOTS))


def _array(values: dict[str, int], slots: dict[str, int], size: int) -> NDArray[np.int64]:
    """Return the arguments of a function with these set, and zeros elsewhere."""
    found = np.zeros(size, np.int64)
    for name, value in values.items():
        found[slots[name]] = value
    return found
