"""Joined outlines against GDAL's vectorisation of the whole image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from rasterio.features import shapes

from unetpp.errors import StoreError
from unetpp.finalize import pieces
from unetpp.finalize.outlines import PixelObject
from unetpp.finalize.pieces import block_boxes, write_pieces
from unetpp.finalize.polygons import iter_batches
from unetpp.geometry import Box

FOREGROUND = np.isin(np.arange(256), (1, 2, 3))


def shard_boxes(height: int, width: int, side: int) -> list[Box]:
    return [
        Box(y, x, y + side, x + side).clip(height, width) for y in range(0, height, side) for x in range(0, width, side)
    ]


def trace(labels: np.ndarray, side: int, folder: Path, keep: np.ndarray = FOREGROUND) -> list[PixelObject]:
    boxes = shard_boxes(*labels.shape, side)
    spilled = folder / f"pieces{side}"
    write_pieces(lambda box: labels[box.slices()], boxes, keep, spilled)
    return [one for batch in iter_batches(boxes, spilled) for one in batch.objects()]


def signed_area(ring: np.ndarray) -> float:
    """Pixels, positive where the ring runs clockwise on screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def as_polygon(found: PixelObject) -> shapely.Polygon:
    return shapely.Polygon(found.rings[0], found.rings[1:])


def normal_form(polygons: list[tuple[int, shapely.Polygon]]) -> list[tuple[int, bytes]]:
    return sorted((label, shapely.normalize(polygon).wkb) for label, polygon in polygons)


def whole_image(labels: np.ndarray, keep: np.ndarray = FOREGROUND) -> list[tuple[int, bytes]]:
    found = shapes(labels, mask=keep[labels], connectivity=4)
    return normal_form([(int(value), shapely.geometry.shape(geometry)) for geometry, value in found])


def spiral(side: int) -> np.ndarray:
    labels = np.zeros((side, side), np.uint8)
    y = x = 0
    dy, dx = 0, 1
    labels[0, 0] = 1
    while True:
        for _ in range(2):
            ny, nx, fy, fx = y + dy, x + dx, y + 2 * dy, x + 2 * dx
            blocked = not (0 <= ny < side and 0 <= nx < side) or labels[ny, nx]
            meets = 0 <= fy < side and 0 <= fx < side and labels[fy, fx]
            if not blocked and not meets:
                break
            dy, dx = dx, -dy
        else:
            return labels
        y, x = ny, nx
        labels[y, x] = 1


def nested_rings(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    distance = np.maximum(abs(y - side // 2), abs(x - side // 2))
    return np.choose(distance % 4, [1, 0, 2, 255]).astype(np.uint8)


def comb(side: int) -> np.ndarray:
    """Return teeth that are one object only through the last row: every piece but one is joined through a far shard."""
    labels = np.zeros((side, side), np.uint8)
    labels[:, ::2] = 3
    labels[-1] = 3
    return labels


SHAPES = {
    "spiral": spiral(19),
    "nested rings": nested_rings(21),
    "comb": comb(15),
    "checkerboard": np.indices((10, 11)).sum(axis=0).astype(np.uint8) % 2,
    "one object": np.full((11, 13), 2, np.uint8),
    "no data": np.full((9, 9), 255, np.uint8),
    "one pixel": np.ones((1, 1), np.uint8),
    "one row": np.tile(np.array([1, 1, 2, 255, 1], np.uint8), 5)[None],
}


@pytest.mark.parametrize("side", [3, 5, 8, 64])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_equal_whole_image(name: str, side: int, tmp_path: Path) -> None:
    found = trace(SHAPES[name], side, tmp_path)
    assert normal_form([(f.label, as_polygon(f)) for f in found]) == whole_image(SHAPES[name])


@pytest.mark.parametrize("seed", range(8))
def test_random_maps_equal_whole_image_for_every_shard_side(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    share = rng.dirichlet([2, 4, 1, 1, 1])
    labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), size=tuple(rng.integers(1, 28, 2)), p=share)
    labels = labels.repeat(rng.integers(1, 4), axis=int(rng.integers(2)))
    expected = whole_image(labels)
    results = [trace(labels, side, tmp_path) for side in (5, 8, 13, 128)]
    for found in results:
        assert normal_form([(f.label, as_polygon(f)) for f in found]) == expected
        assert all(as_polygon(f).is_valid for f in found)
    by_first = [sorted(found, key=lambda f: f.first) for found in results]
    for other in by_first[1:]:
        for a, b in zip(by_first[0], other, strict=True):
            assert (a.label, a.first, a.pixels) == (b.label, b.first, b.pixels)
            assert all(np.array_equal(p, q) for p, q in zip(a.rings, b.rings, strict=True))


def test_shards_of_one_pixel(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).choice(np.array([0, 1], np.uint8), size=(7, 6), p=[0.3, 0.7])
    assert normal_form([(f.label, as_polygon(f)) for f in trace(labels, 1, tmp_path)]) == whole_image(labels)


def test_class_zero_can_be_outlined_and_no_data_never_is(tmp_path: Path) -> None:
    keep = np.arange(256) < 255
    labels = np.array([[0, 0, 255], [1, 254, 254]], np.uint8)
    found = trace(labels, 2, tmp_path, keep)
    assert sorted((f.label, f.pixels) for f in found) == [(0, 2), (1, 1), (254, 2)]
    assert normal_form([(f.label, as_polygon(f)) for f in found]) == whole_image(labels, keep)


def test_rings_are_canonical_and_count_the_objects_pixels(tmp_path: Path) -> None:
    labels = np.random.default_rng(5).choice(np.array([0, 1], np.uint8), size=(40, 40), p=[0.35, 0.65])
    for found in trace(labels, 8, tmp_path):
        shell, *holes = found.rings
        assert tuple(shell[0]) == found.first[::-1]
        assert signed_area(shell) > 0 > max((signed_area(hole) for hole in holes), default=-1)
        assert signed_area(shell) + sum(map(signed_area, holes)) == found.pixels
        starts = [tuple(hole[0, ::-1]) for hole in holes]
        assert starts == sorted(starts)
        for ring in found.rings:
            assert tuple(ring[0, ::-1]) == min(map(tuple, ring[:, ::-1]))


def test_objects_come_by_owner_block_then_first_pixel(tmp_path: Path) -> None:
    labels = np.random.default_rng(6).choice(np.array([0, 1, 2], np.uint8), size=(30, 26))
    boxes = shard_boxes(30, 26, 7)
    owners = []
    for found in trace(labels, 7, tmp_path):
        y, x = found.first
        owners.append((next(i for i, b in enumerate(boxes) if b.y0 <= y < b.y1 and b.x0 <= x < b.x1), y, x))
    assert owners == sorted(owners) and len(set(owners)) == len(owners)


def test_blocks_inside_a_shard_join_as_shards_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLOCK_SIDE", 6)
    labels = np.random.default_rng(7).choice(np.array([0, 1], np.uint8), size=(50, 37), p=[0.4, 0.6])
    blocks = block_boxes(shard_boxes(50, 37, 16))
    covered = np.zeros(labels.shape, int)
    for box in blocks:
        assert max(box.shape) <= 6
        covered[box.slices()] += 1
    assert (covered == 1).all()
    assert normal_form([(f.label, as_polygon(f)) for f in trace(labels, 16, tmp_path)]) == whole_image(labels)


def test_finished_blocks_are_kept_and_missing_ones_are_made_again_with_equal_bytes(tmp_path: Path) -> None:
    labels = np.random.default_rng(8).choice(np.array([0, 1], np.uint8), size=(20, 20))
    trace(labels, 8, tmp_path)
    folder = tmp_path / "pieces8"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    lost = sorted(before)[::2]
    for name in lost:
        (folder / name).unlink()
    reads: list[Box] = []

    def read(box: Box) -> np.ndarray:
        reads.append(box)
        return labels[box.slices()]

    write_pieces(read, shard_boxes(20, 20, 8), FOREGROUND, folder)
    assert len(reads) == len(lost)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_emptied_pieces_are_made_again(tmp_path: Path) -> None:
    labels = np.ones((20, 20), np.uint8)
    trace(labels, 8, tmp_path)
    (tmp_path / "pieces8" / "0.8.arrays").write_bytes(b"")
    assert len(trace(labels, 8, tmp_path)) == 1


def test_damaged_pieces_are_an_error_and_are_made_again(tmp_path: Path) -> None:
    labels = np.ones((20, 20), np.uint8)
    trace(labels, 8, tmp_path)
    victim = tmp_path / "pieces8" / "0.8.arrays"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1  # a flag of "part_closed"
    victim.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        list(iter_batches(shard_boxes(20, 20, 8), tmp_path / "pieces8"))
    assert len(trace(labels, 8, tmp_path)) == 1
