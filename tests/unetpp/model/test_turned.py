"""Means over orientations against numpy's own turns in float64, and what no orientation may change."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.orientations import Tta, turns
from unetpp.model.turned import averaged

COUNTS: dict[Tta, int] = {"none": 1, "mirror": 2, "flips": 4, "d4": 8}


def network(classes: int = 3) -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus(GridConfig(filters=(4, 8, 8), classes=classes)).eval()


def image(height: int = 40, width: int = 52) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def orientations(tta: str) -> list[tuple[int, bool]]:
    """Quarter turns and whether mirrored afterwards; a half turn mirrored is mirrored the other way."""
    quarters = {"none": (0,), "mirror": (0,), "flips": (0, 2), "d4": (0, 1, 2, 3)}[tta]
    return [(quarter, mirrored) for quarter in quarters for mirrored in ((False, True) if tta != "none" else (False,))]


def mean_probabilities(model: UNetPlusPlus, x: torch.Tensor, tta: str) -> NDArray[np.float64]:
    total: Any = 0
    for quarter, mirrored in orientations(tta):
        turned = np.rot90(x.double().numpy(), quarter, (-2, -1))
        turned = np.flip(turned, -1) if mirrored else turned
        with torch.no_grad():
            logits = model.double()(torch.from_numpy(np.ascontiguousarray(turned))).numpy()
        logits = np.flip(logits, -1) if mirrored else logits
        logits = np.rot90(logits, -quarter, (-2, -1))
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        total = total + shares / shares.sum(1, keepdims=True)
    mean: NDArray[np.float64] = total / len(orientations(tta))
    return mean


@torch.no_grad()
@pytest.mark.parametrize("tta", get_args(Tta))
@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_are_the_mean_of_every_orientation(tta: Tta, classes: int) -> None:
    model, x = network(classes), image()
    found = averaged(model, x, tta)
    assert found.shape == (1, classes, 40, 52) and found.dtype == torch.float32
    if classes == 1:
        found = torch.cat([torch.zeros_like(found), found], 1)
    expected = mean_probabilities(model, x, tta)
    np.testing.assert_allclose(found.softmax(1).numpy(), expected, atol=1e-6)
    if classes > 1 and tta != "none":
        np.testing.assert_allclose(found.exp().numpy(), expected, atol=1e-6)
    if tta != "none":
        assert np.abs(expected - mean_probabilities(model, x, "none")).max() > 0.01, "the network does not care"


@torch.no_grad()
def test_a_turned_image_has_the_turned_result() -> None:
    model, x = network(), image()
    upright, whole = averaged(model, x, "d4"), averaged(model, x, "none")
    for quarter in (1, 2, 3):
        turned = averaged(model, torch.rot90(x, quarter, (-2, -1)), "d4")
        torch.testing.assert_close(torch.rot90(turned, -quarter, (-2, -1)), upright, atol=1e-5, rtol=0)
    alone = torch.rot90(averaged(model, torch.rot90(x, 1, (-2, -1)), "none"), -1, (-2, -1))
    assert (alone - whole).abs().max() > 0.01


@torch.no_grad()
def test_height_and_width_may_lie_elsewhere_and_edges_may_be_left_out() -> None:
    model, x = network(), image()
    last = x.permute(0, 2, 3, 1).contiguous()
    cut = averaged(lambda pixels: model(pixels.permute(0, 3, 1, 2))[..., 4:-4, 4:-4], last, "d4", (1, 2))
    torch.testing.assert_close(cut, averaged(model, x, "d4")[..., 4:-4, 4:-4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("tta", get_args(Tta))
def test_every_orientation_is_another_one_and_is_undone(tta: Tta) -> None:
    x = torch.arange(12).reshape(3, 4)
    seen = [turn.of(x, (0, 1)) for turn in turns(tta)]
    assert len(seen) == COUNTS[tta] == len({(tuple(x.shape), tuple(x.flatten().tolist())) for x in seen})
    assert torch.equal(seen[0], x)
    for turn, found in zip(turns(tta), seen, strict=True):
        assert torch.equal(turn.undone(found, (0, 1)), x)


def test_probabilities_of_zero_are_finite_logits() -> None:
    sure = torch.tensor([0.0, 1e4, -1e4]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    found = averaged(lambda _: sure, torch.zeros(1, 3, 8, 8), "d4")
    assert torch.isfinite(found).all() and (found.argmax(1) == 1).all()
