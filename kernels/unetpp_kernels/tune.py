"""Times other blocks than the table's on the GPU in this machine: `python -m unetpp_kernels.tune`; changes no file.

Which blocks are fastest depends on registers, cache and clocks, so a new GPU wants its own figures. The result is
printed as lines of the table; put those into `table.py`, run `make kernels`, and commit both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch

from unetpp_kernels import packing, table

_CANDIDATES = [
    (groups, columns, rows, block, warps)
    for groups, columns, rows, block, warps in product((1, 2, 4), (32, 64), (1, 2, 4), (16, 32), (4, 8))
    if groups * rows <= 8 and groups * columns <= 128
]
_LEVEL_SIDE = {32: 512, 64: 256, 128: 128}
"""Height and width of the maps that have this many channels in the default network, for tiles of 512 px."""
_BATCH = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every family of rows and print the best blocks of each; returns the exit status."""
    _options(arguments)
    if not torch.cuda.is_available():
        print("no GPU in this machine: there is nothing to time")
        return 2
    print(f"{torch.cuda.get_device_name(0)}; milliseconds, medians")
    for name, strips, key, call in _families():
        before = strips.get(key)
        times: dict[tuple[int, int, int, int, int], float] = {}
        for candidate in _CANDIDATES:
            if name == "_LOW_STRIPS" and candidate[2] == 1:
                continue  # rows of an upsampled source come in pairs
            strips[key] = candidate
            found = _time(call)
            if found is not None:
                times[candidate] = found
        strips.pop(key)
        if before is not None:
            strips[key] = before
        best = min(times, key=lambda candidate: times[candidate])
        now = "not in the table" if before is None else f"now {before} {times.get(before, float('nan')):.4f}"
        print(f"{name}  {key}: {best},  # {times[best]:.4f}, {now}", flush=True)
    return 0


def _families() -> Iterator[tuple[str, dict[tuple[str, int], Any], tuple[str, int], Any]]:
    """Yield dictionary, key and a launch that uses the entry, for each sort of strip that the default network has."""
    kinds = {"packed": torch.float16, "single": torch.bfloat16, "fp32": torch.float32}
    for (kind, dtype), width in product(kinds.items(), table.WIDTHS):
        yield "_STRIPS", table._STRIPS, (kind, width), _launch(dtype, width, low=False, inner=False)
        yield "_INNER_STRIPS", table._INNER_STRIPS, (kind, width), _launch(dtype, width, low=False, inner=True)
        yield "_LOW_STRIPS", table._LOW_STRIPS, (kind, width), _launch(dtype, width, low=True, inner=False)


def _launch(dtype: torch.dtype, width: int, *, low: bool, inner: bool) -> Any:
    from unetpp_kernels.gpu import launch

    packed = dtype == torch.float16
    side = _LEVEL_SIDE[width]
    skips = 2 if low else 1
    sources = [_map(dtype, width, side) for _ in range(skips)]
    below = _map(dtype, 2 * width, side // 2) if low else None
    channels = skips * width + (2 * width if low else 0)
    kind = dtype if packed else torch.float32
    depthwise = torch.randn(channels, 1, 3, 3, device="cuda") / 3
    taps = packing.taps(depthwise, kind)
    phases = packing.phases(depthwise[skips * width :], "bilinear", kind) if low else None
    mix = (torch.randn(width, channels, device="cuda") / channels**0.5).to(dtype)
    bias, inner_bias = torch.zeros(width, device="cuda"), torch.zeros(channels, device="cuda")

    def call() -> None:
        launch.depthwise_pointwise(
            sources,
            below,
            taps,
            phases,
            mix,
            bias,
            inner_bias if inner else None,
            inner_relu=inner,
            relu=True,
            mode="bilinear",
            packed=packed,
        )

    return call


def _map(dtype: torch.dtype, channels: int, side: int) -> torch.Tensor:
    made = torch.randn(_BATCH, channels, side, side, device="cuda").to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def _time(call: Any) -> float | None:
    """Return the median time of a call in milliseconds, None where the blocks need more than the device has."""
    import triton
    from triton.runtime.errors import OutOfResources

    try:
        return float(triton.testing.do_bench(call, warmup=20, rep=60, return_mode="median"))
    except OutOfResources:
        return None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m unetpp_kernels.tune", description=__doc__)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
