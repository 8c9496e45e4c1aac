"""Whole networks against float64, and bit for bit against themselves in other bands, blocks and parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unetpp.native.guard import POISON
from tests.unetpp.native.machine import TARGETS, definition, definition_of_whole, lively, picture
from unetpp.model.order import Name
from unetpp.native import memory, node, schedule
from unetpp.native.need import Region
from unetpp.native.network import Network
from unetpp.native.stream import Stream
from unetpp.native.target import Target
from unetpp.package import Package

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
MakePackage = Callable[..., Package]
FLOATS = [name for name, target in TARGETS.items() if target.most is None]
FP32 = [name for name, target in TARGETS.items() if target.stored == "fp32"]
NETWORKS: dict[str, dict[str, Any]] = {
    "depth 1": {"filters": (4, 8), "classes": 1, "bands": 1},
    "depth 2": {"filters": (4, 8, 12), "classes": 5, "spec": {"dtype": "uint16"}},
    "depth 3": {"filters": (24, 40, 48, 8), "classes": 2, "bands": 5, "norm": "none", "spec": {"dtype": "float32"}},
    "depth 4": {"filters": (4, 20, 8, 33, 17), "classes": 17, "upsample": "nearest", "deep_supervision": False},
    "pruned": {"filters": (17, 4, 36, 8), "level": 2},
    "unet": {"filters": (33, 8, 17, 4), "network": "unet", "classes": 2},
}


CASES = [
    pytest.param(config, target, id=f"{network}, {name}")
    for m, (network, config) in enumerate(NETWORKS.items())
    for n, (name, target) in enumerate(TARGETS.items())
    if ((m + n) % 2 == 0 or len(TARGETS) == 1) and (target.most is None or config.get("norm") != "none")
]
"""Every network on two targets, every target under three networks: most of a test's time goes into machine code."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes bands and blocks of columns so small that an image has several."""

    def change(band: int, block: int) -> None:
        monkeypatch.setattr(schedule, "_BAND", band)
        monkeypatch.setattr(node, "_ROW", 1)
        monkeypatch.setattr(node, "_LEAST_BLOCK", block)

    return change


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that a run reads before it has written it makes its result NaN, or the run fall."""
    allocate = memory.empty

    def poison(size: int) -> NDArray[np.uint8]:
        found = allocate(size)
        found[...] = POISON
        return found

    monkeypatch.setattr(memory, "empty", poison)
    yield


def sizes(package: Package) -> list[tuple[int, int]]:
    """Return the least that there is, a wide, a tall and a middling one."""
    multiple = package.spec.architecture.multiple
    return [(multiple * h, multiple * w) for h, w in ((1, 1), (1, 9), (9, 1), (4, 5))]


def whole(shape: tuple[int, int]) -> Region:
    return Region(0, 0, *shape)


def logits(
    network: Network, image: NDArray[Any], part: Region | None = None, heads: tuple[Name, ...] | None = None
) -> NDArray[np.float32]:
    shape = (image.shape[0], image.shape[1])
    return Stream(network, shape, part or whole(shape), heads or tuple(network.heads)).logits(image)


@pytest.mark.parametrize(("config", "target"), CASES)
def test_every_head_is_the_definitions(
    make_package: MakePackage, small: Callable[..., None], config: dict[str, Any], target: Target
) -> None:
    """And does not depend on how many bands an image is computed in."""
    package = lively(make_package(**config))
    small(5, 8)
    network = Network(package, target)
    for seed, shape in enumerate(sizes(package)):
        image = picture((*shape, package.spec.architecture.bands), package.spec.dtype, seed)
        found = logits(network, image)
        exact = target.most is None
        expected = definition(package, image) if exact else definition_of_whole(package, image, target.stored)
        errors = np.abs(found - expected) / np.abs(expected).max()
        error = errors.max()
        # A sum between two whole numbers may become either, which deep levels spread. Many are equal.
        assert error <= {"fp32": 1e-5, "bf16": 0.1, "int16": 2e-3, "int8": 0.05}[target.stored], image.shape
        assert exact or (errors <= 1e-5).mean() >= 0.1, image.shape
        assert error > 0, "nothing was computed"
        for band in (1, 3, 32):
            small(band, 8)
            np.testing.assert_array_equal(logits(network, image), found)


@pytest.mark.parametrize("name", TARGETS)
def test_blocks_do_not_show(make_package: MakePackage, small: Callable[..., None], name: str) -> None:
    package, found = lively(make_package(filters=(4, 17))), []
    image = picture((10, 74, 3))
    for block in (2, 32, 128):
        small(4, block)
        network = Network(package, TARGETS[name])
        assert len(Stream(network, (10, 74), whole((10, 74)), ((0, 1),))._blocks[0, 1]) == -(-74 // block)
        found.append(logits(network, image))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("name", FP32[-1:])
def test_every_node_is_the_definitions(make_package: MakePackage, small: Callable[..., None], name: str) -> None:
    """Of a network whose head shows what its node holds: X^{0,1}, then X^{1,1} by way of X^{0,2}, and so on."""
    import torch

    from unetpp.model.grid import evaluate

    small(3, 8)
    package = lively(make_package(filters=(4, 8, 12, 8)))
    network = Network(package, TARGETS[name])
    image = picture((24, 40, 3))
    model: Any = package.load_model().double()
    pixels = torch.from_numpy((image - np.array(package.spec.mean)) / package.spec.std).permute(2, 0, 1)[None]
    with torch.no_grad():
        nodes = evaluate(model.nodes, model.order, pixels)
    run = Stream(network, (24, 40), whole((24, 40)), ((0, 3),))
    run.logits(image)
    plan, held = run._schedule, run._memory._memory
    assert len(plan.regions) == len(nodes) == 10
    for i, j in plan.regions:
        height, width, kept = 24 >> i, 40 >> i, plan.rows[i, j]
        channels = plan.shape_of((i, j)).channels
        start = run._maps[i, j]["map"] - held.ctypes.data
        ring = held[start:].view(np.float32)[: kept * width * channels].reshape(kept, width, channels)
        value: Any = nodes[i, j]
        expected = value[0].permute(1, 2, 0).numpy()
        # A ring holds the last rows when the run is over.
        for y in range(max(0, height - kept), height):
            wanted = expected[y]
            found = ring[y % kept][:, : wanted.shape[-1]]
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(expected).max(), (i, j, y)
            assert not ring[y % kept][:, wanted.shape[-1] :].any(), "padding is not zero"


@pytest.mark.parametrize("name", TARGETS)
def test_any_part_is_the_wholes(make_package: MakePackage, small: Callable[..., None], name: str) -> None:
    """Bit for bit, wherever it begins and ends, and in images of any height that hold what it sees."""
    package = lively(make_package(filters=(4, 20, 8), classes=2))
    small(5, 8)
    network = Network(package, TARGETS[name])
    height, width = shape = (36, 52)
    image = picture((*shape, 3))
    full = logits(network, image)
    edges = ((0, 1), (0, 36), (1, 4), (35, 36), (7, 22), (12, 29))
    columns = ((0, 1), (0, 52), (1, 2), (51, 52), (2, 3), (9, 38), (50, 52))
    for (y0, y1), (x0, x1) in itertools.product(edges, columns):
        part = logits(network, image, Region(y0, x0, y1, x1))
        np.testing.assert_array_equal(part, full[:, :, y0:y1, x0:x1])
    for j in (1, 2):
        np.testing.assert_array_equal(logits(network, image, heads=((0, j),))[0], full[j - 1])
    halo = package.load_model().halo
    tall = picture((36 + 2 * halo, width, 3))
    alone = logits(network, tall, Region(halo, 0, halo + 8, width))
    less = logits(network, tall[: 2 * halo + 8], Region(halo, 0, halo + 8, width))
    np.testing.assert_array_equal(alone, less)
    assert height % 4 == 0


@pytest.mark.parametrize("name", TARGETS)
def test_a_run_leaves_nothing_behind(make_package: MakePackage, small: Callable[..., None], name: str) -> None:
    """A stream's next image does not depend on its last, even where that held no numbers."""
    package = lively(make_package(filters=(4, 8, 8), classes=5, spec={"dtype": "float32"}))
    small(3, 8)
    network, shape = Network(package, TARGETS[name]), (20, 44)
    images = [picture((*shape, 3), "float32", seed) for seed in range(2)]
    nothing = np.full((*shape, 3), np.nan, np.float32)
    part = Region(3, 5, 19, 41)
    used = Stream(network, shape, part, ((0, 2),))
    for image in (images[0], nothing, images[1], images[0]):
        found, labels = used.logits(image), used.labels(image)
        np.testing.assert_array_equal(found, Stream(network, shape, part, ((0, 2),)).logits(image))
        if image is not nothing:
            values = np.array([info.value for info in package.spec.classes], np.uint8)
            np.testing.assert_array_equal(labels, values[found[0].argmax(0)])
            assert len(np.unique(labels)) > 1
        else:
            assert np.isnan(found).all() == (name in FLOATS)


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_not_a_number_spreads_as_in_torch(
    make_package: MakePackage, small: Callable[..., None], name: str
) -> None:
    """Through pooling too, whatever its sign: x86 makes -NaN of 0 / 0 and of inf - inf."""
    package = lively(make_package(filters=(4, 8, 8), spec={"dtype": "float32"}))
    small(5, 16)
    network, image = Network(package, TARGETS[name]), picture((40, 48, 3), "float32")
    for value in (np.nan, -np.float32(np.nan), np.inf):
        image[17, 23, 1] = value
        with np.errstate(invalid="ignore"):
            expected = definition(package, image)
        lost = ~np.isfinite(expected)
        assert 0.1 < lost.mean() < 0.9
        np.testing.assert_array_equal(~np.isfinite(logits(network, image)), lost)


@pytest.mark.parametrize("name", TARGETS)
def test_labels_of_a_single_logit(make_package: MakePackage, name: str) -> None:
    package = make_package(classes=1)
    network, image = Network(package, TARGETS[name]), picture((16, 24, 3))
    found = Stream(network, (16, 24), whole((16, 24)), ((0, 2),)).labels(image)
    positive = logits(network, image, heads=((0, 2),))[0, 0] > 0
    assert 0 < positive.mean() < 1
    np.testing.assert_array_equal(found, np.where(positive, 7, 2))


def test_an_image_that_is_not_the_streams_is_refused(make_package: MakePackage) -> None:
    """Machine code would read what lies behind it."""
    package = make_package()
    run = Stream(Network(package, TARGETS[FP32[0]]), (8, 8), whole((8, 8)), ((0, 2),))
    good = picture((8, 8, 3))
    for image in (good[:7], good[:, :7], good[..., :2], good.astype(np.uint16), good.transpose(1, 0, 2)):
        with pytest.raises(AssertionError):
            run.labels(image)
    run.labels(good)


def test_class_values_come_of_one_head(make_package: MakePackage) -> None:
    """The other one has no place to write to."""
    both = Stream(Network(make_package(), TARGETS[FP32[0]]), (8, 8), whole((8, 8)), ((0, 1), (0, 2)))
    with pytest.raises(AssertionError):
        both.labels(picture((8, 8, 3)))
