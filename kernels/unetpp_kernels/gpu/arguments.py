"""Tensors as the kernels take them: layout, alignment, new maps, and six of what there may be fewer of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetpp_kernels.gpu import sources as walk
from unetpp_kernels.table import Accumulate, Dtype, Product

DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Parts:
    """Partial moments (P, 3, C) fp32 of a launch's result; the launch makes the room, as it knows its programs.

    There is no tensor where the launch could give none.
    """

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def make(self, programs: int, channels: int, like: Tensor) -> Tensor:
        self.tensor = torch.empty((programs, 3, channels), dtype=torch.float32, device=like.device)
        return self.tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """The batch norms, with ReLU, through which sources are read: (C,) fp32 each, C the channels of all sources."""

    mean: Tensor
    scale: Tensor
    shift: Tensor


def norm_arguments(norm: Norm | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three vectors, or what stands for them in kernels that do not look."""
    if norm is None:
        return (vector(None, 1, like),) * 3
    return norm.mean, norm.scale, norm.shift


def kinds(x: Tensor, packed: bool) -> tuple[Dtype, Accumulate, Product]:
    dtype = DTYPES[x.dtype]
    if dtype != "fp32":
        return dtype, "packed" if packed else "single", "plain"
    # The user's own switch says how much a matrix product may round; "highest" has no tensor-core form but three tf32.
    return dtype, "single", "tf32" if torch.get_float32_matmul_precision() == "medium" else "tf32x3"


def feature_maps(sources: Sequence[Tensor]) -> list[Tensor]:
    """Return at most `walk.MOST` feature maps; what is beyond is concatenated."""
    maps = [feature_map(x) for x in sources]
    if len(maps) > walk.MOST:
        last = torch.cat(maps[walk.MOST - 1 :], 1)
        maps = [*maps[: walk.MOST - 1], feature_map(last)]
    return maps


def feature_map(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def aligned(argument: object) -> object:
    """Return a tensor that starts at a multiple of 16 bytes, as 128-bit loads need it; other arguments as they are.

    Triton compiles a kernel of its own for tensors that do not, one that no check has seen.
    """
    if isinstance(argument, Tensor) and argument.storage_offset() * argument.element_size() % 16:
        return argument.clone()
    return argument


def like_map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return empty_map(x, x.shape[0], channels, height, width)


def empty_map(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def vector(values: Tensor | None, length: int, like: Tensor) -> Tensor:
    """Return fp32 values, zeros where there are none."""
    if values is None:
        return torch.zeros(length, dtype=torch.float32, device=like.device)
    return values.to(torch.float32)


def six(values: Sequence[Any]) -> list[Any]:
    """Return exactly six: the kernel's parameters are fixed, and it looks at `count` of them."""
    return [*values, *[values[0]] * (walk.MOST - len(values))]


def floor(relu: bool) -> float:
    return 0.0 if relu else -math.inf


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
