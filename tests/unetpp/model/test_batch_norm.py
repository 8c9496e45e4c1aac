"""BatchNorm2d is torch's own alone, and over two ranks that of the concatenated batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.ranks import on_ranks
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.batch_norm import BatchNorm2d, synchronise

SHAPES = ((3, 5, 6, 7), (1, 5, 6, 7), (0, 5, 6, 7))
SWITCHES: tuple[dict[str, Any], ...] = ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False})
SMALL = GridConfig(filters=(4, 6, 8), classes=2)


def statistics(norm: nn.BatchNorm2d) -> list[Tensor]:
    return [value.detach().clone() for value in norm.state_dict().values()]


def two_norms(**switches: Any) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    ours, torchs = BatchNorm2d(5, **switches), nn.BatchNorm2d(5, **switches)
    synchronise(ours)
    for value in torchs.parameters():
        nn.init.uniform_(value, 0.5, 1.5)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_torchs_own(dtype: torch.dtype, training: bool, switches: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, torchs = two_norms(**switches)
    x = torch.randn(3, 5, 6, 7, dtype=dtype)
    results = []
    for norm in (ours, torchs):
        norm.train(training)
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(own)
        y.square().sum().backward()
        results.append([y, own.grad, *statistics(norm), *(value.grad for value in norm.parameters())])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_state_dicts_of_torch_load_and_a_network_uses_it() -> None:
    norms = [module for module in UNetPlusPlus(SMALL).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, BatchNorm2d) and not norm.synchronised for norm in norms)
    assert BatchNorm2d(5).state_dict().keys() == nn.BatchNorm2d(5).state_dict().keys()
    network = UNetPlusPlus(SMALL)
    synchronise(network)
    assert all(module.synchronised for module in network.modules() if isinstance(module, BatchNorm2d))
    synchronise(network, on=False)
    assert not any(module.synchronised for module in network.modules() if isinstance(module, BatchNorm2d))


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return input and gradient of all ranks; the mean is far from 0, where a sum of squares loses its digits."""
    g = torch.Generator().manual_seed(1)
    total = sum(shape[0] for shape in SHAPES)
    x = torch.randn((total, *SHAPES[0][1:]), generator=g) + torch.arange(5)[:, None, None] * 10
    return x.to(dtype), torch.randn(x.shape, generator=g).to(dtype)


def share(rank: int) -> slice:
    start = sum(shape[0] for shape in SHAPES[:rank])
    return slice(start, start + SHAPES[rank][0])


def normalised(norm: nn.BatchNorm2d, x: Tensor, gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return what belongs to this rank's images, and what to the network: two steps, as the average needs."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        y = norm(x)
        y.backward(gradient)
    assert x.grad is not None
    return [y.detach(), x.grad], [value.grad for value in norm.parameters() if value.grad is not None]


def norms_on_rank(rank: int) -> list[Any]:
    results: list[Any] = []
    for dtype in (torch.float32, torch.bfloat16):
        for switches in SWITCHES:
            torch.manual_seed(0)
            norm, _ = two_norms(**switches)
            x, gradient = (whole[share(rank)] for whole in batch(dtype))
            results.append((*normalised(norm, x, gradient), statistics(norm)))
            norm.eval()
            results[-1][0].append(norm(x).detach())
    frozen, _ = two_norms()
    # Only one rank asks for a gradient of its weights: the others must still send their sums.
    frozen.requires_grad_(rank == 0)
    x, gradient = (whole[share(rank)] for whole in batch())
    normalised(frozen, x, gradient)
    return results


def test_ranks_equal_one_process_on_all_their_images() -> None:
    ranks = on_ranks(norms_on_rank, world=3)
    cases = [(dtype, switches) for dtype in (torch.float32, torch.bfloat16) for switches in SWITCHES]
    for case, (dtype, switches) in enumerate(cases):
        torch.manual_seed(0)
        _, norm = two_norms(**switches)
        x, gradient = batch(dtype)
        mine, affine = normalised(norm, x, gradient)
        expected = statistics(norm)
        norm.eval()
        if norm.track_running_stats:  # without, torch normalises by the batch, and so does each rank by its own
            mine.append(norm(x).detach())
        bound = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 2**-8}
        for rank in range(len(SHAPES)):
            own, _, found = ranks[rank][case]
            for value, whole in zip(own, mine, strict=not expected):
                torch.testing.assert_close(value, whole[share(rank)], **bound)
            for value, other, whole in zip(found, ranks[0][case][2], expected, strict=True):
                assert torch.equal(value, other)
                torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-5)
        for place, whole in enumerate(affine):
            total = sum(ranks[rank][case][1][place] for rank in range(len(SHAPES)))
            torch.testing.assert_close(total, whole, rtol=1e-4 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def network() -> tuple[UNetPlusPlus, Tensor]:
    torch.manual_seed(2)
    model = UNetPlusPlus(SMALL).double()
    return model, torch.randn(3, 3, 12, 20, dtype=torch.float64)


def loss(heads: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([head.square().sum() for head in heads]).sum()


class Heads(nn.Module):
    """What a training loop calls: all heads."""

    def __init__(self, model: UNetPlusPlus) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model.heads(x)


def network_on_rank(rank: int) -> dict[str, Tensor]:
    model, images = network()
    synchronise(model)
    parallel = DistributedDataParallel(Heads(model), broadcast_buffers=False)
    loss(parallel(images[:2] if rank == 0 else images[2:])).backward()
    return gradients_and_buffers(model)


def gradients_and_buffers(model: UNetPlusPlus) -> dict[str, Tensor]:
    gradients = {f"{name}.grad": value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {**gradients, **dict(model.named_buffers())}


def test_parallel_network_equals_one_process() -> None:
    ranks = on_ranks(network_on_rank)
    model, images = network()
    loss(Heads(model)(images)).backward()
    expected = gradients_and_buffers(model)
    for found in ranks:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # DistributedDataParallel averages the gradients of a loss that one process sums.
            factor = len(ranks) if name.endswith(".grad") else 1
            torch.testing.assert_close(found[name] * factor, value, rtol=1e-5, atol=1e-5)
