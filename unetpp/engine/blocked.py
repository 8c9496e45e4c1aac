"""Keeps an OpenVINO graph in one memory layout on CPUs with AVX2 alone; knows the graph's file, no network.

Where a depthwise convolution alone reads a pointwise one, OpenVINO computes both in one kernel on CPUs that have AVX2
and not AVX-512. That kernel wants blocks of eight channels, all others choose channels last, and every feature map
between them is copied: a quarter of the time of order pw_dw. Kernels that are named in the graph all take blocks, and
nothing is copied. Sums are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Set
from xml.etree import ElementTree

_KERNELS = {"Convolution": "cpu:jit_avx2_1x1,cpu:jit_avx2", "GroupConvolution": "cpu:jit_avx2_dw"}
"""OpenVINO's kernels on blocks by type of layer, the first that can compute it; one that cannot chooses as always."""


def wants_blocks(flags: Set[str]) -> bool:
    """Say whether a CPU of these features (see `cpu_flags`) is one where OpenVINO mixes layouts."""
    return flags >= {"avx2", "fma"} and "avx512f" not in flags


def in_blocks(graph: bytes) -> bytes:
    """Return a graph (XML, OpenVINO's format) with its kernels named, or as it is where no two layers become one."""
    root = ElementTree.fromstring(graph)  # noqa: S314  # our own file, whose sum was checked
    layers = {layer.get("id"): layer for layer in root.iter("layer")}
    if not any(_are_one(layers[edge.get("from-layer")], layers[edge.get("to-layer")]) for edge in root.iter("edge")):
        return graph
    for layer in layers.values():
        if (kernels := _KERNELS.get(layer.get("type", ""))) is not None:
            _describe(layer, kernels)
    return ElementTree.tostring(root)


def _are_one(first: ElementTree.Element, second: ElementTree.Element) -> bool:
    """Say whether a layer is a pointwise convolution and the next a depthwise one."""
    if (first.get("type"), second.get("type")) != ("Convolution", "GroupConvolution"):
        return False
    sides = [side.text for side in first.findall("input/port")[1].findall("dim")[2:]]
    return sides == ["1", "1"]


def _describe(layer: ElementTree.Element, kernels: str) -> None:
    facts = layer.find("rt_info")
    if facts is None:
        facts = ElementTree.Element("rt_info")
        layer.insert(1, facts)  # behind its "data", where OpenVINO writes it
    ElementTree.SubElement(facts, "attribute", {"name": "primitives_priority", "version": "0", "value": kernels})
