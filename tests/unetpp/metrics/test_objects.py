"""Object scores against torchmetrics' panoptic quality and a brute-force AJI over pixel sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from unetpp.metrics import ObjectQuality


def cells(seed: int) -> np.ndarray:
    """About thirty numbered discs, some cut by others."""
    random = np.random.default_rng(seed)
    yy, xx = np.mgrid[:64, :80]
    labels = np.zeros((64, 80), int)
    for number, (y, x, r) in enumerate(zip(*(random.uniform(0, s, 30) for s in (64, 80, 8)), strict=True)):
        labels[(yy - y) ** 2 + (xx - x) ** 2 < r * r] = 7 * number + 3
    return labels


def predicted(seed: int) -> np.ndarray:
    """The same cells moved, one in five missing, some split, some invented."""
    random = np.random.default_rng(seed + 100)
    labels = np.roll(cells(seed), random.integers(-2, 3, 2), (0, 1))
    for name in np.unique(labels)[1:]:
        if random.random() < 0.2:
            labels[labels == name] = 0
        elif random.random() < 0.2:
            labels[(labels == name) & (np.arange(80) % 9 > 4)] += 1000
    labels[random.integers(0, 60) :, -3:] = 5000
    return labels


def aji(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Algorithm 1 of Kumar et al. 2017 over sets of pixels."""
    true = [set(np.flatnonzero(truth == n).tolist()) for n in np.unique(truth[truth > 0])]
    found = [set(np.flatnonzero(prediction == n).tolist()) for n in np.unique(prediction[prediction > 0])]
    shared = union = 0
    used = set()
    for g in true:
        scores = [len(g & p) / len(g | p) for p in found]
        j = int(np.argmax(scores)) if scores else -1
        if j < 0 or not scores[j]:
            union += len(g)
            continue
        shared, union = shared + len(g & found[j]), union + len(g | found[j])
        used.add(j)
    return shared / (union + sum(len(p) for j, p in enumerate(found) if j not in used))


def quality(*images: tuple[np.ndarray, ...]) -> ObjectQuality:
    made = ObjectQuality()
    for image in images:
        made.update(*image)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_aji_equals_brute_force(seed: int) -> None:
    truth, prediction = cells(seed), predicted(seed)
    assert quality((truth, prediction)).aji == pytest.approx(aji(truth, prediction), rel=1e-12)


@pytest.mark.parametrize("void", [False, True])
def test_pq_equals_torchmetrics(void: bool) -> None:
    from torchmetrics.functional.detection import panoptic_quality

    images, categories = [], []
    for seed in range(3):
        truth, prediction = cells(seed), predicted(seed)
        valid = np.ones(truth.shape, bool)
        if void:
            valid[:, 30:50] = False
        images.append((truth, prediction, valid))
        categories.append(
            np.stack(
                [
                    np.stack([prediction > 0, prediction], -1),
                    np.stack([np.where(valid, truth > 0, 255), np.where(valid, truth, 0)], -1),
                ]
            )
        )
    a, b = torch.from_numpy(np.stack(categories, 1))
    expected = panoptic_quality(a, b, things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    ours = quality(*images)
    assert [ours.pq, ours.sq, ours.f1] == pytest.approx(expected[0].tolist(), rel=1e-6)
    assert 0.2 < ours.pq < 0.9


def test_numbers_of_objects_do_not_matter() -> None:
    random = np.random.default_rng(5)
    truth, prediction = cells(5), predicted(5)
    names = np.concatenate([[0], random.permutation(2**31 - 10**4 + np.arange(6000))])
    np.testing.assert_array_equal(
        quality((truth, prediction)).state(), quality((names[truth], names[prediction])).state()
    )


def test_by_hand() -> None:
    truth, prediction = np.zeros((4, 20), np.int32), np.zeros((4, 20), np.int32)
    truth[:, :4], prediction[:, 1:4] = 1, 9  # 16 and 12 pixels, IoU 3/4
    truth[:, 6:10], prediction[:, 8:12] = 2, 4  # IoU 1/3
    truth[:, 14:16], prediction[:2, 18:] = 3, 2  # missed; invented
    made = quality((truth, prediction))
    assert made.state()[:3].tolist() == [1, 2, 2]
    assert made.sq == 3 / 4 and made.f1 == 1 / 3 and made.pq == 1 / 4
    assert made.aji == (12 + 8) / (16 + 24 + 8 + 4)


def test_half_an_overlap_is_no_match() -> None:
    truth, prediction = np.ones((2, 4), int), np.array([[1, 1, 0, 0], [1, 1, 0, 0]])
    assert quality((truth, prediction)).f1 == 0


def test_what_lies_where_no_pixel_counts_never_matters() -> None:
    truth, prediction = cells(1), predicted(1)
    valid = np.ones(truth.shape, bool)
    valid[20:40] = False
    # An invented object deep inside is no error; true objects there are not missed.
    inside = ndimage.binary_erosion(~valid, iterations=5)
    other = np.where(inside & (prediction == 0), 77777, prediction)
    np.testing.assert_array_equal(
        quality((truth, prediction, valid)).state(), quality((np.where(valid, truth, 1), other, valid)).state()
    )


def test_no_objects() -> None:
    nothing, something = np.zeros((5, 5), int), np.eye(5, dtype=int)
    made = quality((nothing, nothing))
    assert np.isnan([made.pq, made.sq, made.f1, made.aji]).all()
    for image in ((nothing, something), (something, nothing)):
        made = quality(image)
        assert made.pq == made.f1 == made.aji == 0 and np.isnan(made.sq)
