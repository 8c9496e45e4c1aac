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
    kinds = {number: layer.get("type", "") for number, layer in layers.items()}
    read = {(kinds[edge.get("from-layer")], kinds[edge.get("to-layer")]) for edge in root.iter("edge")}
    # A pointwise and a depthwise one: no other two of our networks follow each other without a layer in between.
    if ("Convolution", "GroupConvolution") not in read:
        return graph
    for number, layer in layers.items():
        if kinds[number] in _KERNELS:
            _describe(layer, _KERNELS[kinds[number]])
    return ElementTree.tostring(root)


def _describe(layer: ElementTree.Element, kernels: str) -> None:
    facts = layer.find("rt_info")
    if facts is None:
        facts = ElementTree.Element("rt_info")
        layer.insert(1, facts)  # behind its "data", where OpenVINO writes it
    ElementTree.SubElement(facts, "attribute", {"name": "primitives_priority", "version": "0", "value": kernels})
