"""Boxes of a plan: each pixel written once, each tile alike, each written pixel with its context."""

from __future__ import annotations

import json
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unetpp import tiling
from unetpp.errors import PlanError
from unetpp.geometry import Box
from unetpp.tiling import TilePlan, cut, make_plan


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    multiple = draw(st.sampled_from([1, 2, 4, 8]))
    core = multiple * draw(st.integers(1, 6))
    return TilePlan(
        height=draw(st.integers(1, 90)),
        width=draw(st.integers(1, 90)),
        multiple=multiple,
        halo=multiple * draw(st.integers(0, 3)),
        core=core,
        shard=core * draw(st.integers(1, 3)),
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_every_pixel_is_written_once_by_one_shard(plan: TilePlan) -> None:
    written = np.zeros((plan.height, plan.width), np.int64)
    for shard in plan.shards():
        in_shard = np.zeros_like(written)
        for tile in plan.tiles(shard):
            in_shard[tile.write_box.slices()] += 1
        expected = np.zeros_like(written)
        expected[shard.box.slices()] = 1
        np.testing.assert_array_equal(in_shard, expected)
        written += in_shard
    assert (written == 1).all()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_tiles_share_one_shape_and_carry_their_context(plan: TilePlan) -> None:
    for shard in plan.shards():
        window = plan.shard_read_box(shard)
        for tile in plan.tiles(shard):
            read, write = tile.read_box, tile.write_box
            assert read.shape == plan.tile_shape
            assert all(v % plan.multiple == 0 for v in (read.y0, read.x0, read.y1, read.x1))
            assert window.intersect(read) == read
            assert write.y0 - read.y0 >= plan.halo or read.y0 == 0
            assert write.x0 - read.x0 >= plan.halo or read.x0 == 0
            assert read.y1 - write.y1 >= plan.halo or read.y1 == plan.padded_height
            assert read.x1 - write.x1 >= plan.halo or read.x1 == plan.padded_width


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_tiles_do_not_depend_on_the_shard_size(plan: TilePlan) -> None:
    one = TilePlan(plan.height, plan.width, plan.multiple, plan.halo, plan.core, plan.core)
    assert {t for s in plan.shards() for t in plan.tiles(s)} == {t for s in one.shards() for t in one.tiles(s)}
    assert plan.tile_count == len(one.shards())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_cut_repeats_the_last_row_and_column(plan: TilePlan) -> None:
    image = np.arange(plan.height * plan.width * 2, dtype=np.uint16).reshape(plan.height, plan.width, 2)
    whole = np.pad(
        image, ((0, plan.padded_height - plan.height), (0, plan.padded_width - plan.width), (0, 0)), mode="edge"
    )
    for shard in plan.shards():
        origin = plan.shard_read_box(shard).clip(plan.height, plan.width)
        window = image[origin.slices()]
        for tile in plan.tiles(shard):
            box = tile.read_box
            np.testing.assert_array_equal(cut(window, origin, box, plan.height, plan.width), whole[box.slices()])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_plan_survives_json(plan: TilePlan) -> None:
    assert TilePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for shard in plan.shards():
        assert plan.shard_by_id(shard.id) == shard


@pytest.mark.parametrize(
    ("side", "shard"), [(1, 64), (64, 64), (384, 64), (385, 128), (513, 128), (768, 128), (769, 256), (10_000, 256)]
)
def test_automatic_shards_are_the_largest_that_leave_sixteen(side: int, shard: int) -> None:
    assert make_plan(side, side, halo=16, multiple=16, core=64).shard == shard


def test_known_plan() -> None:
    plan = make_plan(2967, 2220, halo=128, multiple=16, core=1024)
    assert plan.shard == 1024
    assert plan.tile_shape == (1280, 1280)
    assert plan.grid_shape == (3, 3)
    assert (plan.padded_height, plan.padded_width) == (2976, 2224)
    (tile,) = plan.tiles(plan.shard_by_id("2.2"))
    assert tile.write_box == Box(2048, 2048, 2967, 2220)
    assert tile.read_box == Box(1696, 944, 2976, 2224)
    assert plan.useful_share == pytest.approx(2967 * 2220 / (9 * 1280 * 1280))


@pytest.mark.parametrize(
    ("size", "halo", "core", "tile", "tiles"),
    [
        ((900, 700), 64, 1024, (912, 704), 1),
        ((1100, 1090), 64, 1104, (1104, 1104), 1),  # four tiles of its own size with a core of 1024
        ((1100, 5000), 64, 1104, (1104, 1232), 5),
        ((1500, 1500), 64, 768, (832, 832), 4),  # each has one neighbour on a side, and so one halo
        ((2220, 2967), 64, 768, (896, 896), 12),
        ((2000, 2000), 64, 1024, (1088, 1088), 4),
        ((2300, 2200), 128, 1152, (1280, 1280), 4),  # as large as the default's tiles, each with one halo on a side
        ((1250, 6000), 128, 1264, (1264, 1520), 5),
        ((3400, 3400), 128, 896, (1152, 1152), 16),  # nine tiles would be larger by more than a fifth
        ((1250, 1280), 128, 1280, (1264, 1280), 1),
        ((8800, 8800), 64, 1024, (1152, 1152), 81),  # 896 computes 2% fewer pixels: not worth another shape
        ((31232, 32768), 64, 1024, (1152, 1152), 992),
    ],
)
def test_the_core_follows_the_size_of_the_image(
    size: tuple[int, int], halo: int, core: int, tile: tuple[int, int], tiles: int
) -> None:
    plan = make_plan(*size, halo=halo, multiple=16)
    assert (plan.core, plan.tile_shape, plan.tile_count) == (core, tile, tiles)


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([0, 32, 64, 128]))
def test_the_chosen_core_computes_no_more_than_the_default(height: int, width: int, halo: int) -> None:
    chosen = make_plan(height, width, halo=halo, multiple=16)
    assert chosen.useful_share >= make_plan(height, width, halo=halo, multiple=16, core=1024).useful_share
    assert np.prod(chosen.tile_shape) <= 1.2 * (1024 + 2 * halo) ** 2


def test_the_core_divides_a_given_shard() -> None:
    assert make_plan(1500, 1500, halo=64, multiple=16, shard=2304).core == 768
    assert make_plan(1500, 1500, halo=64, multiple=16, shard=2048).core == 1024
    with pytest.raises(PlanError, match="shard 600 is not a multiple of the tile core 1024"):
        make_plan(1500, 1500, halo=64, multiple=16, shard=600)


@pytest.mark.parametrize(
    ("sizes", "hint"),
    [
        ((0, 5, 4, 4, 8, 8), "height 0"),
        ((5, 5, 4, 6, 8, 8), "halo 6 is not a multiple of 4"),
        ((5, 5, 4, 4, 10, 10), "core 10 is not a multiple of 4, the model's stride; use 8"),
        ((5, 5, 4, 4, 8, 20), "shard 20 is not a multiple of the tile core 8; use 16"),
        ((5, 5, 16, 16, 4, 4), "use 16"),
    ],
)
def test_impossible_sizes_are_refused_with_the_nearest(sizes: tuple[int, ...], hint: str) -> None:
    with pytest.raises(PlanError, match=hint):
        TilePlan(*sizes)


@pytest.mark.parametrize("shard_id", ["", "0", "1.x", "-1.0", "9.0", "0.9", "0.0.0"])
def test_unknown_shard_ids_are_refused(shard_id: str) -> None:
    with pytest.raises(PlanError, match="no shard"):
        make_plan(100, 100, halo=16, multiple=16, core=64).shard_by_id(shard_id)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.sampled_from([1, 4]))
def test_margins_are_context_only_and_alike(plan: TilePlan, least: int) -> None:
    kinds: Counter[tuple[int, ...]] = Counter()
    with mock.patch.object(tiling, "LEAST_SPARED", max(1, least * plan.halo)):
        for shard in plan.shards():
            for tile in plan.tiles(shard):
                top, left, bottom, right = margins = plan.margins(tile)
                read = tile.read_box
                inner = Box(read.y0 + top, read.x0 + left, read.y1 - bottom, read.x1 - right)
                assert inner.intersect(tile.write_box) == tile.write_box
                assert all(side in (0, plan.halo, 2 * plan.halo) for side in margins)
                kinds[margins] += 1
        assert all(number >= least for margins, number in kinds.items() if any(margins))
        assert plan.margin_kinds() == kinds


def test_a_gigapixel_leaves_out_the_halo_of_all_but_its_edge() -> None:
    plan = make_plan(31109, 32768, halo=64, multiple=16)
    kinds = Counter(plan.margins(tile) for shard in plan.shards() for tile in plan.tiles(shard))
    assert kinds == {(64, 64, 64, 64): 30 * 29, (0, 0, 0, 0): 32 * 31 - 30 * 29}


def test_with_a_larger_halo_the_edges_leave_out_theirs_too() -> None:
    """The last row of tiles has 880 px above what it writes, of which it leaves out two halos."""
    plan = make_plan(31109, 32768, halo=128, multiple=16)
    kinds = Counter(plan.margins(tile) for shard in plan.shards() for tile in plan.tiles(shard))
    assert kinds == {
        (128, 128, 128, 128): 30 * 29,
        (0, 128, 256, 128): 30,
        (256, 128, 0, 128): 30,
        (128, 0, 128, 256): 29,
        (128, 256, 128, 0): 29,
        (0, 0, 0, 0): 4,
    }


def test_exact_margins_by_hand() -> None:
    """Rows 0 to 36, 12 to 48 and 16 to 52 are read; the image's 50 are padded to 52, its 23 columns to 24."""
    plan = TilePlan(height=50, width=23, multiple=4, halo=8, core=20, shard=20)
    assert plan.tile_shape == (36, 24)
    rows = {0: (0, 16), 20: (8, 8), 40: (24, 2)}  # of the last, 10 are written
    columns = {0: (0, 4), 20: (20, 1)}  # both read all 24; the last writes 3
    found = {}
    for shard in plan.shards():
        (tile,) = plan.tiles(shard)
        found[tile.write_box.y0, tile.write_box.x0] = plan.margins(tile, exact=True)
        assert plan.margins(tile) == (0, 0, 0, 0), "too few tiles are alike"
    assert found == {
        (y, x): (top, left, bottom, right) for y, (top, bottom) in rows.items() for x, (left, right) in columns.items()
    }
    assert plan.margin_kinds(exact=True) == dict.fromkeys(found.values(), 1)


def test_exact_margins_of_a_gigapixel() -> None:
    """Of 31,109 rows the last 389 are padded by 11 to a multiple of 16; its tile begins at 31,120 - 1152."""
    plan = make_plan(31109, 32768, halo=64, multiple=16)
    assert plan.tile_shape == (1152, 1152)
    rows, columns = {(0, 128): 1, (64, 64): 29, (752, 11): 1}, {(0, 128): 1, (64, 64): 30, (128, 0): 1}
    assert plan.margin_kinds(exact=True) == {
        (top, left, bottom, right): down * across
        for (top, bottom), down in rows.items()
        for (left, right), across in columns.items()
    }


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_exact_margins_leave_what_is_written(plan: TilePlan) -> None:
    kinds: Counter[tuple[int, ...]] = Counter()
    for shard in plan.shards():
        for tile in plan.tiles(shard):
            top, left, bottom, right = margins = plan.margins(tile, exact=True)
            read = tile.read_box
            assert Box(read.y0 + top, read.x0 + left, read.y1 - bottom, read.x1 - right) == tile.write_box
            kinds[margins] += 1
    assert plan.margin_kinds(exact=True) == kinds


@pytest.mark.parametrize(
    ("size", "core", "shard"),
    [
        ((31232, 32768), 2048, 4096), ((8192, 8192), 2048, 2048), ((9000, 7000), 2048, 2048),
        ((8000, 6000), 1024, 1024), ((1500, 1500), 768, 768), ((700, 900), 1024, 1024),
    ],
)  # fmt: skip
def test_tiles_that_take_little_memory_are_larger_in_large_images(size: tuple[int, int], core: int, shard: int) -> None:
    """Where enough shards are left, and nobody asks for others."""
    plan = make_plan(*size, halo=64, multiple=16, small=True)
    assert (plan.core, plan.shard) == (core, shard)
    for asked in ({"core": 1024}, {"shard": 4096}):
        found, usual = (make_plan(*size, halo=64, multiple=16, small=small, **asked) for small in (True, False))  # type: ignore[arg-type]
        assert found == usual
