"""A package's network as machine code and the weights that it reads; knows no tile and no result."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.model.order import Name, order_of
from unetpp.native import head as heads
from unetpp.native.build import machine_code
from unetpp.native.emit import Code
from unetpp.native.memory import aligned
from unetpp.native.node import PAD, Scratch, node, shape_of
from unetpp.native.program import RUN, run
from unetpp.native.quantize import whole_weights
from unetpp.native.rows import Sources
from unetpp.native.target import Target
from unetpp.native.weights import (
    Weights,
    folded_weights,
    pack_depthwise,
    pack_pointwise,
    padded,
)
from unetpp.package import Package


class Network:
    """Functions and weights of every node and head.

    Attributes:
        steps: nodes in the order of their computation.
        shapes: what each node's function was made for.
        scratches: what each node's function needs per block of columns.
        functions: addresses of the machine code of the nodes, "labels" and "logits".
        run: calls of them, see `unetpp.native.program`; runs without Python's lock.
        arguments: of every node, addresses of its weights by the names of `node.SLOTS`.
        heads: of every head's node, addresses of its weights by the names of `head.SLOTS`.
    """

    def __init__(self, package: Package, target: Target) -> None:
        self.spec, self.target = package.spec, target
        self.config = config = package.spec.architecture
        self.steps = order_of(package.spec.network, config)
        self.shapes = {step.node: shape_of(package.spec, target, step.node) for step in self.steps}
        self.scratches = {name: Scratch(shape, target.size) for name, shape in self.shapes.items()}
        # First: a model.json that does not fit may ask for millions of channels.
        weights = folded_weights(package) if target.most is None else whole_weights(package, target.stored)
        facts = json.dumps([repr(target), [repr(shape) for shape in self.shapes.values()], config.classes])
        machine = machine_code(facts, self._write)
        names = [shape.name for shape in self.shapes.values()] + [heads.LABELS, heads.LOGITS]
        self.functions = {name: machine.address(name) for name in names}
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(machine.address(RUN))
        self._arrays: list[NDArray[Any]] = []  # what the addresses point to
        self.arguments = {step.node: self._node_weights(step.node, len(step.sources), weights) for step in self.steps}
        self.heads = {
            (0, j): self._head_weights(f"head_convs.{j}", weights)
            for j in range(config.last + 1)
            if f"head_convs.{j}.weight" in weights
        }

    def channels(self, level: int) -> int:
        """Return the channels of a level's maps as they are stored."""
        return self.target.padded(self.config.filters[level])

    def _write(self) -> Code:
        code = Code(self.target)
        for shape in self.shapes.values():
            node(code, shape)
        heads.head(code, self.channels(0), self.config.classes)
        run(code)
        return code

    def _address(self, values: NDArray[Any]) -> int:
        self._arrays.append(values)
        return values.ctypes.data

    def _node_weights(self, name: Name, sources: int, weights: Weights) -> dict[str, int]:
        i, j = name
        config, target, channels, size = self.config, self.target, self.channels(i), self.target.size
        key = f"nodes.{i}_{j}"
        first = weights[f"{key}.first.pointwise"][:, :, 0, 0] if (i, j) != (0, 0) else None

        def pointwise(values: NDArray[np.float32], level: int) -> int:
            stored = self.channels(level)
            packed = pack_pointwise(values, target, channels, Sources(stored, stored * size), config.filters[level])
            return self._address(packed)

        found = {
            "bias1": self._address(aligned(padded(weights[f"{key}.first.bias"], channels))),
            "pointwise2": pointwise(weights[f"{key}.second.pointwise"][:, :, 0, 0], i),
            "depthwise2": self._address(pack_depthwise(weights[f"{key}.second.depthwise"], channels)),
            "bias2": self._address(aligned(padded(weights[f"{key}.second.bias"], channels))),
        }
        if first is None:
            # Three rows of an image are three sources, each with three pixels' bands.
            across = weights[f"{key}.first.standard"].transpose(0, 2, 3, 1)
            bands = config.bands
            packed = pack_pointwise(
                across.reshape(len(across), -1),
                target,
                channels,
                Sources(3 * bands, 4 * bands, stored=False),
                3 * bands,
            )
            pixels = self.shapes[name].block + PAD
            mean, std = (np.tile(np.asarray(values, np.float32), pixels) for values in (self.spec.mean, self.spec.std))
            return found | {
                "pointwise1": self._address(packed),
                "mean": self._address(aligned(mean)),
                "std": self._address(aligned(std)),
            }
        found["depthwise1"] = self._address(pack_depthwise(weights[f"{key}.first.depthwise"], channels))
        if not j:
            return found | {"pointwise1": pointwise(first, i - 1)}
        skips = sources * config.filters[i]
        return found | {
            "pointwise1": pointwise(first[:, :skips], i),
            "pointwise_low": pointwise(first[:, skips:], i + 1),
        }

    def _head_weights(self, key: str, weights: Weights) -> dict[str, int]:
        made, stored = heads.outputs(self.target, self.config.classes), self.channels(0)
        scale = weights.get(f"{key}.scale", np.ones(self.config.classes, np.float32))
        values = np.zeros(256, np.uint8)
        values[: len(self.spec.classes)] = [info.value for info in self.spec.classes]
        packed = pack_pointwise(
            weights[f"{key}.weight"][:, :, 0, 0], self.target, made, Sources(stored, stored * self.target.size),
            self.config.filters[0],
        )  # fmt: skip
        return {
            "weights": self._address(packed),
            "scale": self._address(aligned(scale)),
            "bias": self._address(aligned(weights[f"{key}.bias"])),
            "values": self._address(aligned(values)),
        }
