"""Each term against its paper's formula written out for single pixels, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from unetpp.errors import ConfigError
from unetpp.losses import LossConfig, supervised_loss
from unetpp.losses.config import TERMS
from unetpp.losses.skeleton import soft_skeleton

CONFIG = LossConfig(cldice_steps=2)


def only(name: str, **changes: object) -> LossConfig:
    return replace(CONFIG, terms=((name, 1.0),), **changes)  # type: ignore[arg-type]


def batch(channels: int, seed: int = 0, side: int = 6) -> tuple[Tensor, Tensor]:
    """Logits in fp64 and labels with ignored pixels; the last of three or more classes does not occur."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, side, side + 1, generator=g, dtype=torch.float64) * 2
    target = torch.randint(0, max(2, channels - (channels > 2)), (2, side, side + 1), generator=g)
    target[torch.rand(target.shape, generator=g) < 0.25] = 255
    return logits, target


def pixels(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (P, K) of all classes and labels (P,) of the pixels that count."""
    both = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    counted = target != 255
    return both.softmax(1).permute(0, 2, 3, 1)[counted].numpy(), target[counted].numpy()


def scored_classes(channels: int, labels: np.ndarray) -> list[int]:
    return [1] if channels == 1 else sorted(set(labels.tolist()))


def sigma(margins: list[float], truth: list[bool]) -> float:
    """The Lovász extension by its definition: sum of errors times steps of the set function along the order."""

    def jaccard_loss(wrong: set[int]) -> float:
        hit = {i for i, t in enumerate(truth) if t}
        predicted = {i for i, t in enumerate(truth) if t != (i in wrong)}
        return 1 - len(hit & predicted) / len(hit | predicted)

    order = sorted(range(len(margins)), key=lambda i: -margins[i])
    total = 0.0
    for n, i in enumerate(order):
        total += margins[i] * (jaccard_loss(set(order[: n + 1])) - jaccard_loss(set(order[:n])))
    return total


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal(channels: int, gamma: float) -> None:
    logits, target = batch(channels)
    p, labels = pixels(logits, target)
    at = p[np.arange(len(labels)), labels]
    expected = np.mean(-((1 - at) ** gamma) * np.log(at))
    assert float(supervised_loss([logits], target, only("focal", focal_gamma=gamma))) == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tversky(channels: int) -> None:
    logits, target = batch(channels)
    p, labels = pixels(logits, target)
    losses = []
    for k in scored_classes(channels, labels):
        t = labels == k
        tp, fp, fn = p[t, k].sum(), p[~t, k].sum(), (1 - p[t, k]).sum()
        losses.append(1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1))
    assert float(supervised_loss([logits], target, only("tversky"))) == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_lovasz(channels: int) -> None:
    logits, target = batch(channels)
    p, labels = pixels(logits, target)
    losses = [
        sigma(np.abs((labels == k) - p[:, k]).tolist(), (labels == k).tolist())
        for k in scored_classes(channels, labels)
    ]
    assert float(supervised_loss([logits], target, only("lovasz"))) == pytest.approx(np.mean(losses))


def test_lovasz_of_a_hard_prediction_is_one_minus_iou() -> None:
    target = torch.randint(0, 2, (1, 20, 20), generator=torch.Generator().manual_seed(1))
    wrong = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(2)) < 0.2
    predicted = target.bool() ^ wrong
    loss = supervised_loss([(predicted * 2.0 - 1)[:, None] * 100], target, only("lovasz"))
    iou = (predicted & target.bool()).sum() / (predicted | target.bool()).sum()
    assert float(loss) == pytest.approx(1 - float(iou), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_skeleton_equals_grey_morphology(steps: int) -> None:
    x = ndimage.gaussian_filter(np.random.default_rng(steps).random((20, 25)), 1.5)
    x = image = (x - x.min()) / (x.max() - x.min())
    cross = ndimage.generate_binary_structure(2, 1)
    expected = np.zeros_like(x)
    for _ in range(steps + 1):
        eroded = ndimage.grey_erosion(x, footprint=cross, mode="constant", cval=np.inf)
        opened = ndimage.grey_dilation(eroded, (3, 3), mode="constant", cval=-np.inf)
        delta = np.maximum(x - opened, 0)
        expected, x = expected + np.maximum(delta - expected * delta, 0), eroded
    found = soft_skeleton(torch.from_numpy(image)[None, None], steps)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_skeleton_of_a_bar_is_its_centre_line() -> None:
    bar = torch.zeros(1, 1, 11, 21)
    bar[..., 3:8, 2:19] = 1
    skeleton = soft_skeleton(bar, 3)[0, 0]
    assert (skeleton[5, 5:16] == 1).all() and not skeleton[[0, 1, 2, 8, 9, 10]].any()
    assert not skeleton[[3, 4, 6, 7], 5:16].any()


def test_cldice_by_hand() -> None:
    """Lines of one pixel are their own skeletons, so both shares are plain overlaps."""
    target = torch.zeros(1, 5, 12, dtype=torch.long)
    target[:, 2, :8] = 1
    target[:, :, 11] = 255
    logits = torch.full((1, 1, 5, 12), -50.0)
    logits[..., 2, 4:] = 50
    # 7 predicted pixels that count, 4 of them true; 8 true pixels, 4 of them found.
    precision, sensitivity = (4 + 1) / (7 + 1), (4 + 1) / (8 + 1)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    assert float(supervised_loss([logits], target, only("cldice"))) == pytest.approx(expected, rel=1e-6)


def test_cldice_looks_at_the_named_classes_only() -> None:
    logits, target = batch(4)
    config = only("cldice", cldice_classes=(1,))
    binary = torch.where(target == 255, 255, (target == 1).long())
    others = logits[:, [0, 2, 3]].logsumexp(1)
    one = (logits[:, 1] - others)[:, None]
    assert float(supervised_loss([logits], target, config)) == pytest.approx(
        float(supervised_loss([one], binary, config))
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_class_weights_are_those_of_torch(channels: int) -> None:
    logits, target = batch(channels)
    weights = (0.5, 2.0) if channels == 1 else (0.5, 2.0, 0.0, 7.0)
    both = torch.cat([torch.zeros_like(logits), logits], 1) if channels == 1 else logits
    expected = F.cross_entropy(both, target, torch.tensor(weights, dtype=torch.float64), ignore_index=255)
    ours = supervised_loss([logits], target, only("ce", class_weights=weights))
    assert float(ours) == pytest.approx(float(expected))


def test_weights_of_terms_and_heads() -> None:
    heads = [batch(3, seed)[0] for seed in range(2)]
    target = batch(3)[1]
    config = replace(CONFIG, terms=(("ce", 0.5), ("lovasz", 2.0)))
    expected = [
        0.5 * float(supervised_loss([head], target, only("ce")))
        + 2 * float(supervised_loss([head], target, only("lovasz")))
        for head in heads
    ]
    assert float(supervised_loss(heads, target, config)) == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", TERMS)
class TestEveryTerm:
    def test_gradient(self, name: str, channels: int) -> None:
        logits, target = batch(channels, side=4)
        assert torch.autograd.gradcheck(
            lambda x: supervised_loss([x], target, only(name)),
            logits.requires_grad_(True),
            eps=1e-7,
            atol=1e-5,
            fast_mode=True,
        )

    def test_ignored_pixels_never_matter(self, name: str, channels: int) -> None:
        logits, target = batch(channels)
        found = []
        for poison in (0.0, 1e4, torch.inf, torch.nan):
            x = torch.where((target == 255)[:, None], poison, logits).float().requires_grad_(True)
            loss = supervised_loss([x], target, only(name))
            (gradient,) = torch.autograd.grad(loss, x)
            assert not gradient[(target == 255)[:, None].expand_as(x)].any()
            found.append((loss.detach(), gradient))
        for loss, gradient in found[1:]:
            assert torch.equal(loss, found[0][0]) and torch.equal(gradient, found[0][1])

    def test_nothing_counts(self, name: str, channels: int) -> None:
        x = torch.randn(1, channels, 5, 5, requires_grad=True)
        loss = supervised_loss([x], torch.full((1, 5, 5), 255), only(name))
        (gradient,) = torch.autograd.grad(loss, x)
        assert float(loss.detach()) == 0 and not gradient.any()

    def test_halves_are_taken_in_float32(self, name: str, channels: int) -> None:
        logits, target = batch(channels)
        half = logits.bfloat16()
        loss = supervised_loss([half], target, only(name))
        assert loss.dtype == torch.float32
        assert torch.equal(loss, supervised_loss([half.float()], target, only(name)))

    def test_the_order_of_pixels_does_not_matter(self, name: str, channels: int) -> None:
        logits, target = batch(channels)
        if name == "cldice":  # skeletons depend on neighbours, not on how an image lies
            mixed = logits.flip(3).transpose(2, 3), target.flip(2).transpose(1, 2)
        else:
            order = torch.randperm(target[0].numel(), generator=torch.Generator().manual_seed(3))
            mixed = logits.flatten(2)[..., order].view_as(logits), target.flatten(1)[:, order].view_as(target)
        ours = float(supervised_loss([logits], target, only(name)))
        assert ours == pytest.approx(float(supervised_loss([mixed[0]], mixed[1], only(name))))

    def test_descent_reaches_the_truth(self, name: str, channels: int) -> None:
        target = torch.zeros(1, 12, 12, dtype=torch.long)
        target[:, 3:6] = 1
        x = torch.zeros(1, channels, 12, 12, requires_grad=True)
        # clDice alone asks for centre lines; it is used beside a term that wants areas.
        config = replace(CONFIG, terms=(("ce", 0.2), (name, 1.0)) if name == "cldice" else ((name, 1.0),))
        optimizer = torch.optim.Adam([x], 0.3)
        for _ in range(60):
            optimizer.zero_grad()
            supervised_loss([x], target, config).backward()
            optimizer.step()
        decided = (x[:, 0] > 0).long() if channels == 1 else x.argmax(1)
        assert torch.equal(decided, target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": (("dise", 1.0),)}, "choose from ce, dice"),
        ({"terms": (("ce", 1.0), ("ce", 1.0))}, "occurs 2 times"),
        ({"terms": ()}, "at least one term"),
        ({"terms": (("ce", -1.0),)}, "not negative"),
        ({"touching": -1.0}, "touching = -1"),
        ({"tversky": (0.0, 0.0)}, "tversky"),
        ({"class_weights": (-1.0, 1.0)}, "class_weights"),
        ({"class_weights": (0.0, 0.0)}, "class_weights"),
        # NaN is neither below 0 nor above; a third weight was taken for the smoothing.
        ({"terms": (("ce", float("nan")),)}, "not negative"),
        ({"class_weights": (1.0, float("nan"))}, "class_weights"),
        ({"touching": float("nan")}, "touching = nan"),
        ({"focal_gamma": float("inf")}, "focal_gamma = inf"),
        ({"tversky": (0.3, 0.7, 2.0)}, "give two weights"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**changes)  # type: ignore[arg-type]


def test_what_does_not_fit_the_batch_is_refused() -> None:
    logits, target = batch(4)
    with pytest.raises(ConfigError, match="give 4"):
        supervised_loss([logits], target, only("ce", class_weights=(1.0, 2.0)))
    with pytest.raises(ConfigError, match="from 0 to 3"):
        supervised_loss([logits], target, only("cldice", cldice_classes=(4,)))
    with pytest.raises(ConfigError, match="no object numbers"):
        supervised_loss([logits], target, only("ce", touching=2.0))
