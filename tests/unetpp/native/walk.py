"""Runs small networks over images of many shapes between forbidden pages: `walk TARGET LESS`.

Every buffer is exactly as large as was asked for and poisoned. Prints how many runs there were.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.unetpp.native.guard import Edge, Guard
from tests.unetpp.native.machine import TARGETS, picture
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.native import head, memory, network, node, schedule, stream
from unetpp.native.need import Region
from unetpp.native.network import Network
from unetpp.native.stream import Stream
from unetpp.native.target import Target
from unetpp.package import ClassInfo, ModelSpec, Package, save_package

NETWORKS: tuple[tuple[dict[str, Any], str, int, int], ...] = (
    ({"filters": (4, 17, 33, 8), "bands": 3, "classes": 2, "deep_supervision": False}, "uint8", 8, 5),
    ({"filters": (33, 48), "bands": 1, "classes": 17}, "uint16", 32, 3),
    ({"filters": (17, 8, 48), "bands": 5, "classes": 1, "upsample": "nearest"}, "float32", 2, 32),
)
"""Switches, sample type, columns of a block, rows of a band."""


def package(config: dict[str, Any], kind: Any) -> Package:
    architecture = GridConfig(**config)
    classes = max(2, architecture.classes)
    spec = ModelSpec(
        name="walk",
        architecture=architecture,
        classes=tuple(ClassInfo(value=k, name=str(k), color=(0, 0, 0)) for k in range(classes)),
        bands=tuple(str(band) for band in range(architecture.bands)),
        mean=(100.0,) * architecture.bands,
        std=(50.0,) * architecture.bands,
        dtype=kind,
    )
    torch.manual_seed(0)
    return save_package(Path(tempfile.mkdtemp()), UNetPlusPlus(architecture).eval(), spec, "")


class GuardedArena:
    """An arena whose every piece is guarded."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._pieces: list[Any] = []

    def take(self, size: int) -> int:
        self._pieces.append(self._guard.bytes(size))
        return int(self._pieces[-1].ctypes.data)


class GuardedNumpy:
    """NumPy, but what is made empty is guarded."""

    def __init__(self, guard: Guard) -> None:
        self.empty = guard.array

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def shrink(less: str, guard: Guard) -> None:
    """Take away from one kind of memory what its size has on top."""
    replaced: Any = {"maps": schedule, "heads": head, "scratch": node}.get(less)
    if replaced is not None:
        replaced.SLACK = 0
    if less == "mean":
        plain = np.tile

        class Short(GuardedNumpy):
            tile = staticmethod(lambda values, count: plain(values, count - 8))

        network.np = Short(guard)


def main() -> None:
    target, less = TARGETS[sys.argv[1]], sys.argv[2]
    node._ROW = 1
    edges: tuple[Edge, ...] = ("end", "start")
    print(sum(walk(target, edge, less) for edge in edges))


def walk(target: Target, edge: Edge, less: str) -> int:
    """Return how many runs there were with pages behind, or before, every buffer."""
    guard = Guard(edge)
    shrink(less, guard)
    memory.empty = guard.bytes
    stream.Arena = lambda size: GuardedArena(guard)  # type: ignore[assignment, misc]
    stream.np = GuardedNumpy(guard)
    runs = 0
    for config, kind, block, band in NETWORKS:
        node._LEAST_BLOCK, schedule._BAND = block, band
        made = Network(package(config, kind), target)
        multiple = made.config.multiple
        for rows, columns in ((1, 1), (1, 2), (2, 1), (3, 5), (2, 16), (1, 2 * block // multiple + 1)):
            height, width = rows * multiple, columns * multiple
            image = guard.copy(picture((height, width, made.config.bands), kind))
            if less == "image":  # its last byte lies where nobody may read
                image = np.lib.stride_tricks.as_strided(guard.bytes(image.nbytes - 1).view(kind), image.shape)
            parts = {Region(0, 0, height, width), Region(height - 1, width - 1, height, width), Region(0, 0, 1, 1)}
            parts |= {Region(height // 2, width // 3, height // 2 + 1, width - width // 4)}
            for part, heads in itertools.product(sorted(parts), {tuple(made.heads), ((0, made.config.last),)}):
                run = Stream(made, (height, width), part, heads)
                found = run.logits(image)
                assert np.isfinite(found).all(), (config, height, width, part)
                if len(heads) == 1:
                    run.labels(image)
                runs += 1
    return runs


if __name__ == "__main__":
    main()
