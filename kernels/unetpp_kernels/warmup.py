"""Fills Triton's cache ahead of time: `python -m unetpp_kernels.warmup`; knows the table's rows and no network.

A kernel is compiled when it is first launched, which takes seconds each and a minute or two for a network. A node
whose cache is filled beforehand starts at full speed. The cache holds one entry per kernel, architecture and version
of Triton, in the folder TRITON_CACHE_DIR (default ~/.triton/cache); copy it, or bake it into an image.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

import torch

from unetpp_kernels import catalogue
from unetpp_kernels.table import Dtype, Row

_EPILOG = """examples:
  python -m unetpp_kernels.warmup                        what a network needs in fp16, for the GPU in this machine
  python -m unetpp_kernels.warmup --dtype bf16 fp32      for other types
  python -m unetpp_kernels.warmup --dtype bf16 --training
                                                         and for training with UNETPP_KERNELS=triton
  python -m unetpp_kernels.warmup --arch 90 100          for H100/H200 and B200; needs no GPU here
  TRITON_CACHE_DIR=/shared/triton python -m unetpp_kernels.warmup --arch 90
                                                         into a folder that nodes set as theirs

A launch finds these kernels if it runs the same versions of unetpp, torch and Triton with the same TRITON_CACHE_DIR.
Kernels already in the cache cost milliseconds, so running it again is cheap.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and say how far it is; returns the exit status."""
    options = _options(arguments)
    if options.arch is None and not torch.cuda.is_available():
        print("no GPU in this machine: name what to compile for, such as --arch 90 (H100, H200)", file=sys.stderr)
        return 2
    rows = list(catalogue.rows()) if options.all else _wanted(options.dtype, training=options.training)
    print(f"{len(rows)} kernels into {cache_folder()}")
    start = time.monotonic()
    for arch in options.arch or [None]:
        warm(rows, arch)
    print(f"{len(rows) * len(options.arch or [None])} kernels ready in {time.monotonic() - start:.0f} s")
    return 0


def warm(rows: Sequence[Row], arch: str | None) -> None:
    """Compile rows for an architecture, None for the GPU in this machine, and print a line for each."""
    from unetpp_kernels.gpu import offline

    target: AbstractContextManager[None] = nullcontext() if arch is None else offline.compiling_for(arch)
    with target:
        for number, row in enumerate(rows, 1):
            start = time.monotonic()
            offline.compile_row(row)
            print(
                f"[{number}/{len(rows)}] {arch or 'this GPU'} {time.monotonic() - start:4.1f} s  {row.name}", flush=True
            )


def cache_folder() -> Path:
    """Where Triton keeps compiled kernels."""
    named = os.environ.get("TRITON_CACHE_DIR")
    return Path(named) if named else Path.home() / ".triton" / "cache"


def _wanted(dtypes: Sequence[Dtype], *, training: bool) -> list[Row]:
    rows = [row for dtype in dtypes for row in catalogue.usual(dtype)]
    rows += [row for dtype in dtypes if training for row in catalogue.training(dtype)]
    return list(dict.fromkeys(rows))


def _architecture(name: str) -> str:
    from unetpp_kernels.gpu import offline

    try:
        offline.target(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m unetpp_kernels.warmup",
        description="Compile the fused kernels ahead of time, so that new nodes start at full speed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        nargs="+",
        type=_architecture,
        metavar="ARCH",
        help="compile for these: 80 (A100), 86, 89 (L4, L40), 90 (H100, H200), 100 (B200), gfx942 (MI300); "
        "default: the GPU in this machine",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=get_args(Dtype),
        default=["fp16"],
        help="types the network will run in (default: fp16)",
    )
    parser.add_argument("--training", action="store_true", help="also gradients and batch norm")
    parser.add_argument("--all", action="store_true", help="every kernel there is, for odd channel counts too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
