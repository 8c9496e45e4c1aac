"""Two real processes with unequal shares of a batch against one process with all of it, gradients included."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from unetpp.losses import LossConfig, supervised_loss
from unetpp.losses.config import TERMS

CONFIGS = {"default": LossConfig()} | {
    name: LossConfig(terms=((name, 1.0),), class_weights=(0.5, 1.0, 3.0), touching=3.0, cldice_steps=2)
    for name in TERMS
}
# The second worker has one image of four, most of it ignored.
SHARES = (slice(0, 3), slice(3, 4))


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 2, 10, 10, generator=g)
    target = (pixels[:, 0] + pixels[:, 1]).clamp(0, 2).long()
    target[torch.rand(target.shape, generator=g) < 0.2] = 255
    target[3, 3:] = 255
    objects = torch.randint(0, 3, target.shape, generator=g)
    return pixels, target, objects


class Two(nn.Module):
    """A network with two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.heads = nn.Conv2d(2, 4, 3, padding=1), nn.ModuleList(nn.Conv2d(4, 3, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x).relu()
        return [head(x) for head in self.heads]


def worker(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(of_all_workers(SHARES[rank]), Path(folder) / f"{rank}.pt")
    # A DDP module that outlives its group joins gloo's threads with Python's lock held, and may wait for ever.
    gc.collect()
    dist.destroy_process_group()


def of_all_workers(share: slice) -> dict[str, tuple[Tensor, list[Tensor]]]:
    from torch.distributed.nn.functional import all_reduce
    from torch.nn.parallel import DistributedDataParallel

    pixels, target, objects = (tensor[share] for tensor in data())
    network = DistributedDataParallel(Two())
    found = {}
    for name, config in CONFIGS.items():
        network.zero_grad()
        loss = supervised_loss(
            network(pixels), target, config, objects=objects, reduce=lambda tensor: all_reduce(tensor.clone())
        )
        loss.backward()
        found[name] = loss.detach(), [p.grad.clone() for p in network.module.parameters()]
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, list[Tensor]]]]:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def alone(config: LossConfig, share: slice) -> tuple[Tensor, list[Tensor]]:
    network = Two()
    pixels, target, objects = (tensor[share] for tensor in data())
    loss = supervised_loss(network(pixels), target, config, objects=objects)
    loss.backward()
    return loss.detach(), [p.grad for p in network.parameters() if p.grad is not None]


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for a, b in zip(ours, expected, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * largest


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "lovasz"])
def test_workers_give_the_whole_batch(name: str, found: list[dict[str, tuple[Tensor, list[Tensor]]]]) -> None:
    loss, gradients = alone(CONFIGS[name], slice(None))
    for result in found:
        assert float(result[name][0]) == pytest.approx(float(loss), rel=1e-5)
        assert_close(result[name][1], gradients)
    # The mean of the workers' own gradients would have been something else.
    parts = [alone(CONFIGS[name], share)[1][0] for share in SHARES]
    assert float(((parts[0] + parts[1]) / 2 - gradients[0]).abs().max()) > 1e-2 * float(gradients[0].abs().max())


def test_lovasz_is_the_mean_of_the_workers(found: list[dict[str, tuple[Tensor, list[Tensor]]]]) -> None:
    parts = [alone(CONFIGS["lovasz"], share) for share in SHARES]
    for result in found:
        assert float(result["lovasz"][0]) == pytest.approx(sum(float(loss) for loss, _ in parts) / 2, rel=1e-5)
        assert_close(result["lovasz"][1], [(a + b) / 2 for a, b in zip(parts[0][1], parts[1][1], strict=True)])
