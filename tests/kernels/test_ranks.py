"""The kernels' autograd functions on two ranks and over micro-batches: gradients of one process and one batch."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.ranks import on_ranks
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.batch_norm import synchronise
from unetpp_kernels import forced

Norm = Literal["batch", "none"]
CASES: list[tuple[str, Norm]] = list(product(("pw_dw", "dw_pw", "standard"), ("batch", "none")))  # type: ignore[arg-type]


def network(conv: str, norm: Norm) -> UNetPlusPlus:
    torch.manual_seed(3)
    config = GridConfig(filters=(4, 6), conv=conv, norm=norm, deep_supervision=False)  # type: ignore[arg-type]
    return UNetPlusPlus(config).double()


def images() -> Tensor:
    return torch.randn(3, 3, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def loss(logits: Tensor) -> Tensor:
    """A sum over pixels, so that parts add up; no symmetric one, whose gradient a batch norm would make vanish."""
    return (logits.exp() * 0.1 + logits[:, :1] * logits).sum()


def found(model: nn.Module) -> dict[str, Tensor]:
    gradients = {f"{name}.grad": value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {**gradients, **dict(model.named_buffers())}


def on_rank(rank: int) -> list[dict[str, Tensor]]:
    """One image on rank 0 and two on rank 1; without norms, rank 1 also takes its images one after the other."""
    results = []
    own = images()[:1] if rank == 0 else images()[1:]
    for conv, norm in CASES:
        model = network(conv, norm)
        synchronise(model)
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        *before, last = own.split(1 if norm == "none" else len(own))
        with forced("triton"):
            with parallel.no_sync():
                for part in before:
                    loss(parallel(part)).backward()  # type: ignore[no-untyped-call]
            loss(parallel(last)).backward()  # type: ignore[no-untyped-call]
        results.append(found(model))
    return results


def test_two_ranks_equal_one_process() -> None:
    ranks = on_ranks(on_rank)
    for case, (conv, norm) in enumerate(CASES):
        model = network(conv, norm)
        with forced("torch"):
            loss(model(images())).backward()  # type: ignore[no-untyped-call]
        expected = found(model)
        for rank in ranks:
            assert rank[case].keys() == expected.keys()
            for name, value in expected.items():
                # DistributedDataParallel averages over ranks what one process adds up.
                factor = len(ranks) if name.endswith(".grad") else 1
                torch.testing.assert_close(rank[case][name] * factor, value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw", "standard"])
def test_micro_batches_add_up_to_one_batch(conv: str) -> None:
    """Of a loss that is a sum, and without norms, which look at the whole batch."""
    results: list[dict[str, Any]] = []
    for size in (3, 2, 1):
        model = network(conv, "none")
        with forced("triton"):
            for part in images().split(size):
                loss(model(part)).backward()  # type: ignore[no-untyped-call]
        results.append(found(model))
    for parts in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-10)
