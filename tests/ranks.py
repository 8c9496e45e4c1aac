"""Runs a function on several real ranks of a gloo process group, for tests of what ranks compute together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def on_ranks(function: Callable[[int], Any], world: int = 2) -> list[Any]:
    """Return [function(rank) for every rank], each computed in a process of its own within one process group.

    The function must be a module's own, and its result one that torch.save takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run, (function, world, folder), nprocs=world)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _run(rank: int, function: Callable[[int], Any], world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(function(rank), Path(folder) / str(rank))
    finally:
        dist.destroy_process_group()
