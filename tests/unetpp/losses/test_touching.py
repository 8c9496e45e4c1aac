"""Weights between touching objects against a search of every pixel's window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unetpp.losses import LossConfig, supervised_loss, touching_weights


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("first", [1, 2**31 - 7])
def test_equals_a_search(radius: int, first: int) -> None:
    g = torch.Generator().manual_seed(radius)
    small = torch.randint(0, 7, (2, 4, 5), generator=g)
    objects = torch.where(small > 0, small + first - 1, 0).repeat_interleave(3, 1).repeat_interleave(3, 2)
    objects[torch.rand(objects.shape, generator=g) < 0.5] = 0
    ours = touching_weights(objects.int(), 4.0, radius)
    for n, y, x in torch.cartesian_prod(*(torch.arange(side) for side in objects.shape)).tolist():
        window = objects[n, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        different = set(window.flatten().tolist()) - {0}
        assert float(ours[n, y, x]) == (5.0 if len(different) > 1 else 1.0)


def test_they_weigh_cross_entropy() -> None:
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1, 2, 6, 6, generator=g), torch.randint(0, 2, (1, 6, 6), generator=g)
    objects = torch.zeros(1, 6, 6, dtype=torch.int32)
    objects[0, :3], objects[0, 3:] = 1, 2
    weight = touching_weights(objects, 2.0, 1)
    entropy = F.cross_entropy(logits, target, reduction="none")
    config = LossConfig(terms=(("ce", 1.0),), touching=2.0, touching_radius=1)
    ours = supervised_loss([logits], target, config, objects=objects)
    assert float(ours) == pytest.approx(float((entropy * weight).sum() / weight.sum()), rel=1e-6)
    assert weight[0, :, 0].tolist() == [1, 1, 3, 3, 1, 1]
