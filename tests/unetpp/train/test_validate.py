"""Validation sees every labelled pixel once, as whole-image inference would, whatever the tiles and workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetpp.geometry import Box
from unetpp.metrics import Confusion
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.turned import averaged
from unetpp.train import ArraySource, Ranks
from unetpp.train.normalise import Normalise
from unetpp.train.source import Blocks
from unetpp.train.validate import decide, evaluate, predict

MEAN, STD = (120.0, 120.0, 120.0), (60.0, 50.0, 70.0)


@pytest.fixture
def network() -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus(GridConfig(filters=(4, 8, 8), classes=3)).eval()


def source() -> ArraySource:
    random = np.random.default_rng(0)
    images = []
    for index, (height, width) in enumerate([(97, 131), (40, 33), (64, 64)]):
        labels = random.integers(0, 3, (height, width)).astype(np.uint8)
        labels[:5] = 255
        images.append(
            (f"i{index}", "ab"[index % 2], random.integers(0, 256, (height, width, 3), np.uint8), labels, None)
        )
    return ArraySource(images, 3)


def whole(network: UNetPlusPlus, source: ArraySource, index: int) -> torch.Tensor:
    image = source.images[index]
    pixels = source.read(index, Box(0, 0, image.height, image.width)).pixels
    normal = (pixels.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    x = torch.from_numpy(normal).permute(2, 0, 1)[None]
    with torch.no_grad():
        return network(x)[0]


def test_tiles_give_the_whole_images_logits(network: UNetPlusPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetpp.tiling.best_core", lambda *_, **__: 32)
    data = source()
    seen = [np.zeros((i.height, i.width), int) for i in data.images]
    for found in predict(network, data, Normalise(MEAN, STD, "cpu"), precision="fp32"):
        part = found.box.slices()
        seen[found.image][part] += 1
        expected = whole(network, data, found.image)[(slice(None), *part)]
        torch.testing.assert_close(found.logits[-1], expected, atol=2e-5, rtol=0)
        np.testing.assert_array_equal(found.truth.labels, data.read(found.image, found.box).labels)
    assert all((count == 1).all() for count in seen)


def test_the_mean_over_orientations_is_the_whole_images(network: UNetPlusPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetpp.tiling.best_core", lambda *_, **__: 32)
    data, norm = source(), Normalise(MEAN, STD, "cpu")
    for index, image in enumerate(data.images):
        pixels = data.read(index, Box(0, 0, image.height, image.width)).pixels
        multiple = network.multiple
        edges = ((0, -image.height % multiple), (0, -image.width % multiple), (0, 0))
        x = torch.from_numpy(np.pad(pixels, edges, mode="edge")).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = averaged(lambda y: torch.stack(network.heads(y)), norm(x.float()), "d4")
        for found in predict(network, data, norm, precision="fp32", every_head=True, tta="d4"):
            if found.image == index:
                part = found.box.slices()
                for head, whole in zip(found.logits, expected, strict=True):
                    torch.testing.assert_close(head, whole[0][(slice(None), *part)], atol=2e-5, rtol=0)


def test_only_tiles_with_labels_are_predicted(network: UNetPlusPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetpp.tiling.best_core", lambda *_, **__: 32)
    data = source()
    data.blocks = Blocks(np.array([0]), np.array([[40, 70, 50, 90]]), np.array([[1, 1, 1]]))
    boxes = [found.box for found in predict(network, data, Normalise(MEAN, STD, "cpu"), precision="fp32")]
    assert [(b.y0, b.x0) for b in boxes] == [(32, 64)]


def test_counts_are_those_of_whole_images(network: UNetPlusPlus) -> None:
    data = source()
    total, groups = evaluate(network, data, Normalise(MEAN, STD, "cpu"), precision="fp32")
    expected = {"a": Confusion(3), "b": Confusion(3)}
    for index, image in enumerate(data.images):
        labels = data.read(index, Box(0, 0, image.height, image.width)).labels
        expected[image.group].update(labels, whole(network, data, index).argmax(0).numpy())
    for name, confusion in expected.items():
        np.testing.assert_array_equal(groups[name].matrix, confusion.matrix)
    np.testing.assert_array_equal(total.matrix, expected["a"].matrix + expected["b"].matrix)


def test_workers_share_the_images(network: UNetPlusPlus) -> None:
    data, norm = source(), Normalise(MEAN, STD, "cpu")
    shares = [{f.image for f in predict(network, data, norm, precision="fp32", ranks=Ranks(r, 2))} for r in range(2)]
    assert shares[0] | shares[1] == {0, 1, 2} and not shares[0] & shares[1]


def test_one_logit_is_foreground_above_zero() -> None:
    assert decide(torch.tensor([[[-1.0, 0.0, 2.0]]])).tolist() == [[0, 0, 1]]
