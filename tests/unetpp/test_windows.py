"""The windows of a shard's tiles: the image's own pixels, each read once."""

from __future__ import annotations

import numpy as np
import pytest

from unetpp.geometry import Box
from unetpp.tiling import Tile, TilePlan, make_plan
from unetpp.windows import Window, Windows

RNG = np.random.default_rng(0)


class Source:
    """An image that counts how often each of its pixels is read."""

    def __init__(self, plan: TilePlan) -> None:
        self.pixels = RNG.integers(0, 65535, (plan.height, plan.width, 3), dtype=np.uint16)
        self.valid = RNG.integers(0, 2, (plan.height, plan.width), dtype=np.uint8).astype(bool)
        self.reads = np.zeros((plan.height, plan.width), int)

    def read(self, box: Box) -> Window:
        assert box.area > 0 and box == box.clip(*self.valid.shape)
        self.reads[box.slices()] += 1
        return Window(box, self.pixels[box.slices()], self.valid[box.slices()])

    def check(self, window: Window, tile: Tile) -> None:
        box = tile.read_box.clip(*self.valid.shape)
        assert window.box == box
        assert np.array_equal(window.pixels, self.pixels[box.slices()])
        assert np.array_equal(window.valid, self.valid[box.slices()])


@pytest.mark.parametrize("size", [(900, 1000), (400, 330), (129, 513), (64, 64), (260, 131)])
@pytest.mark.parametrize("halo", [0, 16, 48])
def test_each_pixel_is_read_once_per_shard(size: tuple[int, int], halo: int) -> None:
    plan = make_plan(*size, halo=halo, multiple=16, core=64, shard=256)
    source = Source(plan)
    for shard in plan.shards():
        tiles = sorted(plan.tiles(shard), key=lambda tile: tile.write_box.x0)
        windows = Windows(source.read, tiles, plan.height, plan.width)
        source.reads[...] = 0
        for tile in tiles:
            source.check(windows.read(tile), tile)
        around = plan.shard_read_box(shard).clip(plan.height, plan.width)
        assert (source.reads[around.slices()] == 1).all() and source.reads.sum() == around.area
        assert not windows._above and not windows._left


def test_any_order_and_gaps_give_the_same_pixels() -> None:
    plan = make_plan(500, 560, halo=32, multiple=16, core=64, shard=512)
    source = Source(plan)
    [shard, *_] = plan.shards()
    for _ in range(20):
        tiles = [tile for tile in plan.tiles(shard) if RNG.random() < 0.7]
        windows = Windows(source.read, tiles, plan.height, plan.width)
        for at in RNG.permutation(len(tiles))[: len(tiles) - 3]:
            source.check(windows.read(tiles[at]), tiles[at])
            assert len(windows._above) <= 1, "only the next tile can use it"


def test_what_is_kept_holds_no_window_alive() -> None:
    """A slice would keep the whole of it: megabytes where kilobytes are meant."""
    plan = make_plan(256, 256, halo=16, multiple=16, core=64, shard=256)
    tiles = plan.tiles(plan.shards()[0])
    windows = Windows(Source(plan).read, tiles, 256, 256)
    windows.read(tiles[0])
    kept = [*windows._above.values(), *windows._left.values()]
    assert len(kept) == 2 and all(part.pixels.base is None and part.valid.base is None for part in kept)
    assert [part.pixels.shape for part in kept] == [(48, 96, 3), (96, 48, 3)]
