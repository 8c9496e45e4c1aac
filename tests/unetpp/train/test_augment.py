"""Colours change as the formulas say, per patch and reproducibly, and stay in range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import hed2rgb, rgb2hed

from tests.unetpp.train.shapes import squares
from unetpp.errors import ConfigError
from unetpp.train import ArraySource, AugmentConfig, TrainConfig
from unetpp.train.augment import blur, check_augment, patches, recolour, restain
from unetpp.train.sampling import Sampler

STILL = AugmentConfig(gamma=0, gain=0, offset=0, tint=0, saturation=(1, 1), blur=0, noise=0)


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + 1) for seed in range(count)]


def test_no_range_changes_nothing() -> None:
    x = torch.rand(3, 3, 9, 11)
    torch.testing.assert_close(recolour(x, STILL, generators(3)), x)


@pytest.mark.parametrize(
    "change",
    [{"gamma": 0.3}, {"gain": 0.3}, {"offset": 0.2}, {"tint": 0.2}, {"saturation": (0.0, 0.5)}, {"stain": 0.3},
     {"blur": 1.0, "blur_sigma": 4.0}, {"noise": 1.0}],
)  # fmt: skip
def test_each_change_acts_on_every_patch_on_its_own(change: dict[str, object]) -> None:
    config = replace(STILL, **change)  # type: ignore[arg-type]
    x = torch.rand(4, 3, 16, 16) * 0.6 + 0.2
    together = recolour(x, config, generators(4))
    assert (together - x).abs().amax((1, 2, 3)).min() > 1e-4
    for index in range(4):
        alone = recolour(x[index : index + 1], config, [np.random.default_rng(index + 1)])
        # The blur's window follows the widest Gaussian of its batch, which adds less than its 3-sigma tail.
        torch.testing.assert_close(alone, together[index : index + 1], atol=5e-3 if "blur" in change else 1e-6, rtol=0)


def test_stains_are_changed_as_scikit_image_separates_them() -> None:
    """Multiply the amounts of haematoxylin, eosin and DAB: the same picture as through skimage's rgb2hed and back."""
    random = np.random.default_rng(0)
    amounts = random.uniform(0, 0.12, (20, 30, 3))
    image = hed2rgb(amounts)
    expected = hed2rgb(rgb2hed(image) * [1.3, 0.8, 1.1])
    x = torch.from_numpy(np.moveaxis(image, -1, 0)[None]).float()
    factor = torch.tensor([1.3, 0.8, 1.1]).view(1, 3, 1, 1)
    found = restain(x, factor, torch.zeros(1, 3, 1, 1))[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 1e-5 and np.abs(image - expected).max() > 0.05


def test_unchanged_stains_give_the_same_picture() -> None:
    x = torch.rand(2, 3, 8, 8).clamp(min=0.02)
    same = restain(x, torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1))
    torch.testing.assert_close(same, x, atol=1e-5, rtol=1e-4)


def test_blur_is_each_patchs_own_gaussian() -> None:
    x = torch.rand(3, 2, 40, 40)
    found = blur(x, [0.0, 0.8, 1.5])
    torch.testing.assert_close(found[0], x[0])
    for index, sigma in ((1, 0.8), (2, 1.5)):
        for band in range(2):
            expected = gaussian_filter(x[index, band].numpy(), sigma, mode="nearest", radius=5)
            np.testing.assert_allclose(found[index, band].numpy(), expected, atol=1e-4)


def test_elastic_bends_labels_with_pixels_and_keeps_them_whole() -> None:
    augment = replace(STILL, scale=(1.0, 1.0), rotate=0.0, elastic=3.0)
    config = TrainConfig(batch=4, patch=40, augment=augment)
    source = squares(4, 0, objects=True)
    frames = Sampler(source, config).frames(0, range(4))
    pixels, labels, objects = patches(frames, 40, augment, "cpu")
    straight, _, _ = patches(frames, 40, replace(augment, elastic=0.0), "cpu")
    assert objects is not None and set(labels.unique().tolist()) <= {0, 1, 255}
    assert (pixels - straight).abs().mean() > 1
    counted = labels != 255
    # Interpolated pixels at an edge lie between dark and bright; away from it they agree with the labels.
    bright, dark = pixels[:, 0] > 145, pixels[:, 0] < 75
    assert (labels[counted & bright] == 1).all() and (labels[counted & dark] == 0).all()
    assert ((objects > 0) == (labels == 1))[counted].all()


def test_objects_of_large_numbers_stay_apart() -> None:
    numbers = np.kron(np.arange(2**31 - 37, 2**31 - 1).reshape(6, 6), np.ones((8, 8))).astype(np.int32)
    labels, pixels = np.ones(numbers.shape, np.uint8), np.zeros((*numbers.shape, 1), np.uint8)
    source = ArraySource([("a", "a", pixels, labels, numbers)], classes=2)
    augment = replace(STILL, scale=(1.0, 1.0), rotate=0.0)
    frames = Sampler(source, TrainConfig(batch=1, patch=48, augment=augment)).frames(0, [0])
    _, _, objects = patches(frames, 48, augment, "cpu")
    assert objects is not None and objects.unique().tolist() == np.unique(numbers).tolist()


def test_the_brightness_curve_leaves_what_lies_outside_its_range_alone() -> None:
    x = torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.5]).view(1, 1, 1, 5)
    found = recolour(x, replace(STILL, gamma=0.5), generators(1)).flatten()
    assert found[[0, 1, 3, 4]].tolist() == [-0.5, 0.0, 1.0, 1.5] and found[2] != 0.25


@pytest.mark.parametrize(("bands", "dtype"), [(1, np.uint8), (4, np.uint8), (3, np.uint16)])
def test_stains_of_what_is_no_slide_are_refused(bands: int, dtype: type) -> None:
    pixels = np.ones((16, 16, bands), dtype)
    span = ArraySource([("a", "g", pixels, np.zeros((16, 16), np.uint8), None)], 2).span
    check_augment(AugmentConfig(), span)
    with pytest.raises(ConfigError, match=r"augment.stain = 0.2: .* set it to 0"):
        check_augment(AugmentConfig(stain=0.2), span)


@pytest.mark.parametrize("wrong", [{"scale": (1.6, 0.6)}, {"scale": (0.0, 1.0)}, {"saturation": (1.0, 0.5)}])
def test_ranges_the_wrong_way_round_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = .*smaller number first"):
        AugmentConfig(**wrong)  # type: ignore[arg-type]


def test_patches_stay_in_range() -> None:
    augment = AugmentConfig(noise=1.0, blur=1.0, elastic=2.0, stain=0.3)
    sampler = Sampler(squares(4, 0), TrainConfig(batch=5, patch=40, augment=augment))
    pixels, labels, objects = patches(sampler.frames(1, range(5)), 40, augment, "cpu")
    assert pixels.shape == (5, 3, 40, 40) and pixels.dtype == torch.float32 and labels.dtype == torch.int64
    assert pixels.min() >= 0 and pixels.max() <= 255 and objects is None
    assert set(labels.unique().tolist()) <= {0, 1, 255}
