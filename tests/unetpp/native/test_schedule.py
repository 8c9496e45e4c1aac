"""Bands, rings and blocks of columns: that they are enough, and no more than that."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from tests.unetpp.native.machine import TARGETS, lively, picture
from unetpp.model.order import Name
from unetpp.native import node, schedule
from unetpp.native.need import Region
from unetpp.native.network import Network
from unetpp.native.schedule import Schedule
from unetpp.native.stream import Stream
from unetpp.native.target import Target
from unetpp.package import Package

MakePackage = Callable[..., Package]
SHAPE, PART = (104, 40), Region(35, 3, 80, 21)


@pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
@pytest.mark.parametrize("band", [1, 5])
@pytest.mark.parametrize("kind", ["unetplusplus", "unet"])
def test_rings_hold_what_is_read_and_no_row_more(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch, kind: str, band: int
) -> None:
    """With a row less, any one of them, the result is another."""
    monkeypatch.setattr(schedule, "_BAND", band)
    package = lively(make_package(filters=(4, 8, 8, 8), network=kind, deep_supervision=False))
    network, image = Network(package, next(iter(TARGETS.values()))), picture((*SHAPE, 3))
    enough = Schedule._rows_kept
    full = Stream(network, SHAPE, Region(0, 0, *SHAPE), ((0, 3),)).logits(image)
    # In the middle of an image the first band needs the most rows, from its top on others do.
    for part in (PART, Region(0, 0, *SHAPE)):
        rows = Stream(network, SHAPE, part, ((0, 3),))._schedule.rows
        assert len(rows) == len(network.steps)
        for name in (None, *rows):
            if name is not None and rows[name] == 1:
                continue  # less than that is none
            monkeypatch.setattr(Schedule, "_rows_kept", lambda self, node, one=name: enough(self, node) - (node == one))
            found = Stream(network, SHAPE, part, ((0, 3),)).logits(image)
            wanted = full[:, :, part.y0 : part.y1, part.x0 : part.x1]
            assert np.array_equal(found, wanted) is (name is None), (part, name)
        monkeypatch.setattr(Schedule, "_rows_kept", enough)


@pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
@pytest.mark.parametrize("name", TARGETS)
def test_bytes_are_what_a_stream_takes(make_package: MakePackage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(node, "_ROW", 1)
    network = Network(make_package(filters=(4, 24, 8), classes=17), TARGETS[name])
    for part in (Region(0, 0, *SHAPE), PART):
        found = Stream(network, SHAPE, part, ((0, 1), (0, 2)))
        assert found._memory.left == 0 and found._schedule.bytes > 100_000


def test_memory_does_not_grow_with_an_images_height(make_package: MakePackage) -> None:
    spec = make_package().spec
    sizes = [
        Schedule(spec, Target(16), (height, 512), Region(0, 0, height, 512), ((0, 2),)).bytes
        for height in (128, 1024, 8192)
    ]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("part", [Region(0, 0, *SHAPE), PART, Region(103, 39, 104, 40)])
def test_bands_end_where_the_result_does(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch, part: Region
) -> None:
    monkeypatch.setattr(schedule, "_BAND", 7)
    plan = Schedule(make_package(filters=(4,) * 4).spec, Target(16), SHAPE, part, ((0, 3),))
    tops = [part.y0, *plan.bottoms[:-1]]
    assert plan.bottoms[-1] == part.y1 and all(0 < b - a <= 7 for a, b in zip(tops, plan.bottoms, strict=True))
    for name, region in plan.regions.items():
        ends = [band[name] for band in plan.ends]
        assert ends == sorted(ends) and ends[0] > region.y0 and ends[-1] == region.y1


@pytest.mark.parametrize("width", [4, 36, 40, 96, 132, 200, 4096])
def test_blocks_cover_all_columns_once(make_package: MakePackage, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(node, "_ROW", 1)
    plan = Schedule(make_package().spec, Target(16), (8, width), Region(0, 1, 8, width), ((0, 2),))
    for name, region in plan.regions.items():
        blocks = plan.columns(name)
        assert blocks[0][0] == region.x0 and blocks[-1][1] == region.x1
        assert all(a[1] == b[0] for a, b in pairwise(blocks))
        most = plan.shape_of(name).block
        assert all(left % 2 == 0 and 0 < right - left <= most for left, right in blocks)
        assert len(blocks) == -(-(region.x1 - region.x0) // most)


@pytest.mark.parametrize(
    "part",
    [
        Region(0, 0, 105, 40),
        Region(0, 0, 104, 41),
        Region(-1, 0, 9, 9),
        Region(0, -1, 9, 9),
        Region(5, 5, 5, 9),
        Region(5, 5, 9, 5),
        Region(9, 0, 5, 9),
    ],
)
def test_a_result_that_is_not_in_the_image_is_refused(make_package: MakePackage, part: Region) -> None:
    """Its machine code would write to other memory."""
    heads: tuple[Name, ...] = ((0, 2),)
    with pytest.raises(AssertionError):
        Schedule(make_package().spec, Target(16), SHAPE, part, heads)


def test_an_image_of_odd_sides_is_refused(make_package: MakePackage) -> None:
    with pytest.raises(AssertionError):
        Schedule(make_package().spec, Target(16), (102, 40), PART, ((0, 2),))
