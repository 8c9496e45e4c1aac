"""The first invariant: inference in tiles equals inference on the whole image, at any image, tile and shard size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.engines import BF16_ENGINES, ENGINES, NATIVE, WHOLES
from unetpp import tiling
from unetpp.engine import Engine, choose_engine
from unetpp.geometry import Box
from unetpp.maps import MAPS
from unetpp.model import UNet, UNetPlusPlus
from unetpp.model.orientations import Tta
from unetpp.package import Package
from unetpp.tiling import TilePlan, cut

MULTIPLE, HALO = 4, 28
"""Of the networks here: depth 2, bilinear."""
NETWORKS: dict[str, dict[str, Any]] = {
    "pw_dw": {},
    "dw_pw": {"conv": "dw_pw"},
    "standard": {"conv": "standard", "filters": (4, 4, 4)},
    "nearest": {"upsample": "nearest"},
    "deconv": {"upsample": "deconv"},
    "pruned": {"level": 1},
    "one logit": {"classes": 1, "norm": "none"},
    "unet": {"network": "unet"},
    "depth 3": {"filters": (4, 4, 4, 4)},
    "uint16": {"spec": {"dtype": "uint16", "mean": (30_000.0,) * 3, "std": (9_000.0,) * 3}},
}
SUPPORTED = [name for name in NETWORKS if name not in ("dw_pw", "standard", "deconv")]
"""Networks that there is machine code for."""
few = settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])


def picture(height: int, width: int, dtype: str = "uint8", top: int = 255, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, top + 1, (height, width, 3)).astype(dtype)


def tiled(
    plan: TilePlan, image: NDArray[Any], run: Callable[..., NDArray[Any]], *, exact: bool = False
) -> NDArray[Any]:
    """Return what `run` (logits or labels) gives tile by tile, each pixel from the tile that writes it."""
    height, width = image.shape[:2]
    result: NDArray[Any] | None = None
    for shard in plan.shards():
        origin = plan.shard_read_box(shard).clip(height, width)
        window = image[origin.slices()]
        for tile in plan.tiles(shard):
            margins = plan.margins(tile, exact=exact)
            out = run(cut(window, origin, tile.read_box, height, width), margins)
            read = tile.read_box
            inner = Box(read.y0 + margins[0], read.x0 + margins[1], read.y1 - margins[2], read.x1 - margins[3])
            assert out.shape[-2:] == inner.shape
            if result is None:
                result = np.zeros((*out.shape[:-2], height, width), out.dtype)
            result[(..., *tile.write_box.slices())] = out[(..., *tile.write_box.slices(inner))]
    assert result is not None
    return result


def assert_tiled_equals_whole(engine: Engine, plan: TilePlan, image: NDArray[Any]) -> None:
    whole = engine.logits(image)
    parts = tiled(plan, image, engine.logits, exact=engine.any_margins)
    tolerance = 1e-5 * np.abs(whole).max()
    assert np.abs(parts - whole).max() <= tolerance
    ranked = np.sort(np.concatenate([whole, np.zeros_like(whole[:1])]) if len(whole) == 1 else whole, axis=0)
    clear = ranked[-1] - ranked[-2] > 2 * tolerance
    labels = engine.labels(image)
    assert len(np.unique(labels)) > 1 or labels.size < 2000
    found = tiled(plan, image, engine.labels, exact=engine.any_margins)
    np.testing.assert_array_equal(found[clear], labels[clear])


def assert_tiled_maps_equal_whole(engine: Engine, plan: TilePlan, image: NDArray[Any]) -> None:
    """Maps are bytes: a share on the edge between two may fall to either side."""
    config = engine.spec.architecture
    heads = config.last if engine.spec.network == "unetplusplus" and config.deep_supervision else 1
    maps = MAPS if heads > 1 else MAPS[:1]
    truth = engine.layers(image, maps).astype(int)
    found = tiled(
        plan, image, lambda tile, margins: engine.layers(tile, maps, margins), exact=engine.any_margins
    ).astype(int)
    assert np.abs(found[1:] - truth[1:]).max() <= 1 and np.ptp(truth[1:]) > 5
    assert (found[0] != truth[0]).mean() < 0.001


def plan_for(package: Package, height: int, width: int, core: int, shard: int) -> TilePlan:
    model = package.load_model()
    return TilePlan(height, width, model.multiple, model.halo, core, shard)


@pytest.fixture(scope="module")
def plain(make_package: Callable[..., Package]) -> Package:
    return make_package()


@pytest.fixture(scope="module")
def torch_engine(plain: Package) -> Engine:
    return choose_engine(plain, name="torch", precision="fp32")


@pytest.fixture(scope="module")
def openvino_engine(plain: Package) -> Engine:
    return choose_engine(plain, name="openvino", precision="fp32")


@pytest.fixture(scope="module")
def native_engine(plain: Package) -> Engine:
    return choose_engine(plain, name="native", precision="fp32")


def test_the_sizes_named_here_are_the_networks_own(plain: Package) -> None:
    model = plain.load_model()
    assert (model.multiple, model.halo) == (MULTIPLE, HALO)


sides = st.one_of(st.integers(1, 120), st.sampled_from([1, 2, 3, 64, 65, 72, 73, 97, 113]))


@few
@given(height=sides, width=sides, cores=st.integers(2, 8), shard=st.integers(1, 3))
@example(1, 1, 2, 1)
@example(64, 64, 2, 1)  # one tile exactly
@example(65, 65, 2, 2)  # one pixel more
@example(1, 150, 4, 1)
@example(97, 113, 6, 2)
@example(67, 61, 1, 3)
def test_torch(torch_engine: Engine, plain: Package, height: int, width: int, cores: int, shard: int) -> None:
    plan = plan_for(plain, height, width, 4 * cores, 4 * cores * shard)
    assert_tiled_equals_whole(torch_engine, plan, picture(height, width))


@few
@given(height=sides, width=sides, cores=st.integers(2, 8), shard=st.integers(1, 3))
@example(1, 1, 2, 1)
@example(64, 64, 2, 1)
@example(65, 65, 2, 2)
@example(1, 150, 4, 1)
@example(97, 113, 6, 2)
def test_openvino(openvino_engine: Engine, plain: Package, height: int, width: int, cores: int, shard: int) -> None:
    plan = plan_for(plain, height, width, 4 * cores, 4 * cores * shard)
    assert_tiled_equals_whole(openvino_engine, plan, picture(height, width))


@pytest.mark.skipif(not NATIVE, reason="no machine code for this CPU")
@few
@given(height=sides, width=sides, cores=st.integers(2, 8), shard=st.integers(1, 3))
@example(1, 1, 2, 1)
@example(64, 64, 2, 1)
@example(65, 65, 2, 2)
@example(1, 150, 4, 1)
@example(97, 113, 6, 2)
@example(67, 61, 1, 3)
def test_native(native_engine: Engine, plain: Package, height: int, width: int, cores: int, shard: int) -> None:
    plan = plan_for(plain, height, width, 4 * cores, 4 * cores * shard)
    assert_tiled_equals_whole(native_engine, plan, picture(height, width))


@pytest.mark.parametrize(
    ("name", "engine", "spared"),
    [
        *((name, engine, tiling.LEAST_SPARED) for name in NETWORKS for engine in ("torch", "openvino")),
        pytest.param("depth 3", "openvino", 1, marks=pytest.mark.slow),
        ("depth 3", "torch", 1),
        *((name, engine, tiling.LEAST_SPARED) for name in SUPPORTED for engine in NATIVE),
        pytest.param("deconv", "openvino", 1, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_network(
    make_package: Callable[..., Package], name: str, engine: str, spared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "LEAST_SPARED", spared)  # 1: every tile leaves out what it can
    package = make_package(**NETWORKS[name])
    height, width = (173, 179) if name == "depth 3" else (113, 127)
    image = picture(height, width, package.spec.dtype, 255 if package.spec.dtype == "uint8" else 65_535)
    plan = plan_for(package, height, width, 40, 80)
    runner = choose_engine(package, name=engine, precision="fp32")
    leaves_out = any(map(any, plan.margin_kinds(exact=runner.any_margins)))
    assert plan.tile_shape != (plan.padded_height, plan.padded_width)
    assert leaves_out == (spared == 1 or engine == "native")
    assert_tiled_equals_whole(runner, plan, image)
    assert_tiled_maps_equal_whole(runner, plan, image)


@pytest.mark.parametrize(
    ("engine", "spared"),
    [("torch", tiling.LEAST_SPARED), ("openvino", 1), *((engine, tiling.LEAST_SPARED) for engine in NATIVE)],
)
@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_means_over_orientations(
    make_package: Callable[..., Package], plain: Package, engine: str, spared: int, tta: Tta,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tiling, "LEAST_SPARED", spared)
    image = picture(113, 127)
    plan = plan_for(plain, 113, 127, 40, 80)
    runner = choose_engine(plain, name=engine, precision="fp32", tta=tta)
    assert_tiled_equals_whole(runner, plan, image)
    assert_tiled_maps_equal_whole(runner, plan, image)


@pytest.mark.parametrize(
    ("engine", "upsample", "spared", "strip"),
    [
        ("torch", "bilinear", tiling.LEAST_SPARED, 256),
        ("torch", "nearest", tiling.LEAST_SPARED, 256),
        ("openvino", "bilinear", tiling.LEAST_SPARED, 256),
        ("openvino", "nearest", tiling.LEAST_SPARED, 8),
        pytest.param("openvino", "bilinear", 1, 8, marks=pytest.mark.slow),  # half a minute of preparing graphs
        *((engine, upsample, tiling.LEAST_SPARED, 256) for engine in NATIVE for upsample in ("bilinear", "nearest")),
    ],
)
def test_exactly_with_integer_weights(
    make_package: Callable[..., Package],
    engine: str,
    upsample: str,
    spared: int,
    strip: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All sums are exact in float32 (the float64 network agrees), so that any difference would be a wrong pixel."""
    monkeypatch.setattr("unetpp.model.margins._STRIP", strip)
    monkeypatch.setattr(tiling, "LEAST_SPARED", spared)
    package = make_package(integer=True, norm="none", upsample=upsample)
    runner = choose_engine(package, name=engine, precision="fp32")
    exact = runner.any_margins
    # Every kind of margins is a graph of its own: those of rows and of columns are looked at one after the other.
    for height, width in ((89, 97),) if spared > 1 else ((89, 28), (28, 97)):
        image = picture(height, width, top=3)
        whole = runner.logits(image)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
        with torch.no_grad():
            np.testing.assert_array_equal(whole, package.load_model().double()(pixels)[0].numpy())
        assert len(np.unique(whole)) > 50
        for core, shard in ((12, 36), (20, 20), (64, 64)) if spared > 1 else ((28, 28),):
            plan = plan_for(package, height, width, core, shard)
            leaves_out = any(map(any, plan.margin_kinds(exact=exact)))
            assert leaves_out == (spared == 1 or exact)
            np.testing.assert_array_equal(tiled(plan, image, runner.logits, exact=exact), whole)
            np.testing.assert_array_equal(tiled(plan, image, runner.labels, exact=exact), runner.labels(image))
            if leaves_out:
                maps = tiled(plan, image, lambda tile, margins: runner.layers(tile, MAPS, margins), exact=exact)
                np.testing.assert_array_equal(maps, runner.layers(image, MAPS))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_halo_one_step_too_small_is_seen(make_package: Callable[..., Package], engine: str) -> None:
    package = make_package(integer=True, norm="none")
    image = picture(89, 97, top=3)
    runner = choose_engine(package, name=engine, precision="fp32")
    plan = TilePlan(89, 97, MULTIPLE, HALO - MULTIPLE, 20, 40)
    assert (tiled(plan, image, runner.logits, exact=runner.any_margins) != runner.logits(image)).any()


@pytest.mark.parametrize("engine", BF16_ENGINES)
def test_bf16_in_tiles_is_as_close_as_bf16_itself(plain: Package, engine: str) -> None:
    image = picture(113, 149)
    exact = choose_engine(plain, name=engine, precision="fp32").logits(image)
    rounded = choose_engine(plain, name=engine, precision="bf16")
    whole = rounded.logits(image)
    plan = plan_for(plain, 113, 149, 24, 48)
    parts = tiled(plan, image, rounded.logits, exact=rounded.any_margins)
    assert np.abs(parts - whole).max() <= np.abs(whole - exact).max()


@pytest.mark.parametrize("precision", WHOLES)
def test_whole_numbers_in_tiles_are_the_whole(plain: Package, precision: str) -> None:
    """To the bit, though no sum is: they are rounded alike wherever a tile begins."""
    image = picture(113, 149)
    runner = choose_engine(plain, name="native", precision=precision)
    plan = plan_for(plain, 113, 149, 24, 48)
    np.testing.assert_array_equal(tiled(plan, image, runner.logits, exact=True), runner.logits(image))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_sees_further_than_its_receptive_radius(make_package: Callable[..., Package], name: str) -> None:
    """A NaN spreads to every output that could read it: the spread is at most the radius, and reaches it."""
    model = make_package(**NETWORKS[name]).load_model()
    assert max(nan_spread(model, axis=2), nan_spread(model, axis=3)) == model.receptive_radius
    assert model.receptive_radius <= model.halo < model.receptive_radius + model.multiple


def nan_spread(model: UNetPlusPlus | UNet, axis: int) -> int:
    """Return the largest distance along `axis` between a poisoned pixel and an output that it reaches."""
    side = 6 * model.halo
    shape = [1, model.config.bands, model.multiple, model.multiple]
    shape[axis] = side
    spread = 0
    for phase in range(model.multiple):
        image = torch.zeros(shape)
        poisoned = side // 2 // model.multiple * model.multiple + phase
        image.select(axis, poisoned).fill_(float("nan"))
        with torch.no_grad():
            reached = model(image).isnan().any(1).any(dim=5 - axis - 1)[0].nonzero().flatten()
        spread = max(spread, poisoned - int(reached.min()), int(reached.max()) - poisoned)
    return spread
