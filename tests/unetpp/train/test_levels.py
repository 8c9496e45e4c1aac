"""Every level is scored as the network pruned to it would be, and the smallest that is good enough is named."""

from __future__ import annotations

import pytest
import torch

from tests.unetpp.train.shapes import squares
from unetpp.metrics import Confusion
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.train.levels import LevelScore, score_levels, smallest_good
from unetpp.train.normalise import Normalise
from unetpp.train.validate import evaluate, predict

NORM = Normalise((128.0,) * 3, (60.0,) * 3, "cpu")


@pytest.mark.parametrize("classes", [1, 2])
def test_levels_score_as_pruned_networks(classes: int) -> None:
    torch.manual_seed(0)
    network = UNetPlusPlus(GridConfig(filters=(4, 6, 8), classes=classes))
    source = squares(3, 0)
    scores = score_levels(network, source, NORM, precision="fp32")
    assert [found.level for found in scores] == [1, 2, 0]
    for found in scores[:2]:
        pruned = network.prune(found.level)
        total, _ = evaluate(pruned, source, NORM, precision="fp32")
        assert found.iou == tuple(map(float, total.iou)) and found.score == found.iou[1]
        assert found.parameters == sum(p.numel() for p in pruned.parameters())


def test_the_mean_is_of_probabilities() -> None:
    torch.manual_seed(1)
    network = UNetPlusPlus(GridConfig(filters=(4, 6, 8), classes=3))
    source = squares(2, 0)
    expected = Confusion(3)
    for found in predict(network, source, NORM, precision="fp32", every_head=True):
        mean = torch.stack([logits.softmax(0) for logits in found.logits]).mean(0)
        expected.update(found.truth.labels, mean.argmax(0).numpy())
    found_mean = score_levels(network, source, NORM, precision="fp32")[-1]
    assert found_mean.iou == pytest.approx(tuple(expected.iou), nan_ok=True)


def test_one_head_has_no_mean() -> None:
    network = UNetPlusPlus(GridConfig(filters=(4, 6), deep_supervision=False))
    assert [found.level for found in score_levels(network, squares(2, 0), NORM, precision="fp32")] == [1]


@pytest.mark.parametrize(("drop", "level"), [(0.0, 3), (0.4, 3), (0.5, 2), (5.0, 2), (20.0, 1)])
def test_the_smallest_level_within_the_drop(drop: float, level: int) -> None:
    figures = {1: 0.70, 2: 0.875, 3: 0.88, 4: 0.879, 0: 0.99}
    scores = [LevelScore(j, (0.9, figure), figure, j) for j, figure in figures.items()]
    assert smallest_good(scores, drop) == level
