"""The hybrid loss against its formula written out over one-hot tensors in fp64, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unetpp.errors import ShapeError
from unetpp.losses import hybrid_loss, supervised_loss


def direct(logits: Tensor, target: Tensor) -> Tensor:
    """CE + mean over present classes of 1 - (2I + 1) / (P + T + 1), pixel by pixel over one-hot labels."""
    classes = logits.shape[1]
    valid = target != 255
    scores = logits.permute(0, 2, 3, 1)[valid]
    labels = target[valid]
    if classes == 1:
        entropy = F.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype))
        p, t = scores[:, 0].sigmoid()[:, None], labels[:, None].to(scores.dtype)
    else:
        entropy = F.cross_entropy(scores, labels)
        p, t = scores.softmax(1), F.one_hot(labels, classes).to(scores.dtype)
    dice = (2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)
    present = t.sum(0) > 0
    return entropy + (1 - dice[present]).sum() / max(1, int(present.sum()))


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_value_and_gradient_equal_the_formula(classes: int, ignored: float) -> None:
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 7, 9, generator=g, requires_grad=True)
    target = torch.randint(0, max(2, classes) - (classes > 2), (2, 7, 9), generator=g)  # the last of 5 never occurs
    target[torch.rand(2, 7, 9, generator=g) < ignored] = 255
    ours = hybrid_loss(logits, target)
    twin = logits.detach().double().requires_grad_(True)
    truth = direct(twin, target)
    assert float(ours.detach()) == pytest.approx(float(truth.detach()), rel=1e-5)
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(truth, twin)
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_pixels_move_nothing(classes: int) -> None:
    logits = torch.randn(1, classes, 4, 4, requires_grad=True)
    loss = hybrid_loss(logits, torch.full((1, 4, 4), 255))
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.any()


def test_a_perfect_prediction_costs_nothing() -> None:
    target = torch.tensor([[[0, 1], [2, 255]]])
    logits = F.one_hot(target.clamp(max=2), 3).permute(0, 3, 1, 2).float() * 100
    assert float(hybrid_loss(logits, target)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 1, 4, 4), (4, 4), (3, 5, 4)])
@pytest.mark.parametrize("classes", [1, 2])
def test_labels_of_other_pixels_are_refused(classes: int, shape: tuple[int, ...]) -> None:
    """Labels of one image were spread over a batch of three, and a loss came out."""
    with pytest.raises(ShapeError, match=r"target has shape .*; logits \(3, \d, 4, 4\) need \(3, 4, 4\)"):
        hybrid_loss(torch.zeros(3, classes, 4, 4), torch.ones(shape, dtype=torch.long))


def test_supervision_is_the_mean_of_the_heads() -> None:
    target = torch.randint(0, 2, (1, 6, 6))
    heads = [torch.randn(1, 2, 6, 6) for _ in range(3)]
    expected = sum(float(hybrid_loss(head, target)) for head in heads) / 3
    assert float(supervised_loss(heads, target)) == pytest.approx(expected, rel=1e-6)
