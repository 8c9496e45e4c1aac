"""Two real workers make the steps of one: losses, weights, statistics and validation figures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import on_ranks
from tests.unetpp.train.shapes import squares
from unetpp.errors import DataError
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.train import Ranks, TrainConfig, fit

CONFIG = TrainConfig(
    steps=4, batch=6, patch=32, warmup=0, rate=1e-3, validate_every=2, ema=0.5, precision="fp32", threads=1
)


def train(rank: int | None = None, *, folder: Path | None = None, config: TrainConfig = CONFIG) -> dict[str, Any]:
    torch.manual_seed(0)
    network = UNetPlusPlus(GridConfig(filters=(8, 12, 16)))
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as own:
        result = fit(
            network, squares(6, 0), squares(5, 1), config, mean=(128.0,) * 3, std=(60.0,) * 3,
            folder=folder or Path(own), ranks=Ranks.of_process_group() if rank is not None else None,
            on_step=lambda _, loss: losses.append(loss),
        )  # fmt: skip
    assert result.best is not None
    return {
        "losses": losses,
        "weights": {name: value.double() for name, value in network.state_dict().items()},
        "matrix": torch.from_numpy(result.confusion),
        "groups": {k: list(v) for k, v in result.best.groups.items()},
    }


def test_two_workers_make_the_steps_of_one() -> None:
    """The same patches, statistics and Dice sums over all workers: what differs is the order of a sum."""
    alone = train()
    first, second = on_ranks(train)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5) and second["losses"] == []
    for name, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(second["weights"][name], first["weights"][name], atol=0, rtol=0)
    assert torch.equal(first["matrix"], second["matrix"])
    assert int(first["matrix"].sum()) == 5 * 46 * 40
    assert set(first["groups"]) == {"even", "odd"}


def gradients(rank: int | None) -> torch.Tensor:
    """Return all gradients of one step: its weights are moved by exactly the gradient."""
    from unetpp.train.loop import _State, _Trainer
    from unetpp.train.normalise import Normalise

    torch.manual_seed(0)
    network = UNetPlusPlus(GridConfig(filters=(8, 12, 16)))
    ranks = Ranks.of_process_group() if rank is not None else Ranks()
    if rank is not None:
        from unetpp.model.batch_norm import synchronise

        synchronise(network)
    norm = Normalise((128.0,) * 3, (60.0,) * 3, "cpu")
    trainer = _Trainer(_State(network, CONFIG, (True, True)), squares(6, 0), squares(5, 1), CONFIG, norm, ranks)
    network.train()
    trainer._part(trainer._next(), last=True)
    trainer.close()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_two_workers_have_the_gradients_of_one() -> None:
    alone = gradients(None)
    for found in on_ranks(gradients):
        assert len(found) == len(alone)
        assert (found - alone).abs().max() <= 1e-5 * max(1.0, float(alone.abs().max()))


def two_folders(rank: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if rank == 0:
            train(None, folder=folder)
        try:
            train(rank, folder=folder)
        except DataError as error:
            return str(error)
    return "accepted"


def test_workers_that_see_different_folders_are_told() -> None:
    for message in on_ranks(two_folders):
        assert "steps 4, 0" in message and "share" in message


def test_shares_are_the_whole_once() -> None:
    for world in (1, 2, 3, 7):
        shares = [list(Ranks(rank, world).share(10)) for rank in range(world)]
        assert [number for share in shares for number in share] == list(range(10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    np.testing.assert_array_equal(Ranks().sum(np.array([1, 2])), [1.0, 2.0])
