"""Pyramid levels against a pixel-by-pixel count, and as ome-zarr reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetpp.finalize import pyramid
from unetpp.finalize.pyramid import halve, write_pyramid
from unetpp.geometry import Box, Spacing
from unetpp.job import SegmentJob
from unetpp.levels import level_shapes


def count_votes(labels: np.ndarray) -> np.ndarray:
    """Return the next level by counting, pixel by pixel."""
    height, width = (-(-side // 2) for side in labels.shape)
    out = np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            votes = Counter(int(v) for v in labels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel() if v != 255)
            out[y, x] = votes.most_common(1)[0][0] if votes else 255  # ties: the one counted first
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_halve_counts_votes(height: int, width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 4, 254, 255], np.uint8), (height, width))
    assert np.array_equal(halve(labels), count_votes(labels))


def test_ties_and_no_data() -> None:
    labels = np.array([[1, 4, 255, 255, 4, 0], [4, 1, 255, 0, 0, 0]], np.uint8)
    assert halve(labels).tolist() == [[1, 0, 0]]
    assert halve(np.full((2, 2), 255, np.uint8)).tolist() == [[255]]


def random_labels(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array([0, 1, 4, 255], np.uint8), (-(-height // 3), -(-width // 3)))
    labels = small.repeat(3, axis=0).repeat(3, axis=1)[:height, :width].copy()
    labels[: height // 2, : width // 2] = 255
    return labels


@pytest.mark.parametrize("shape", [(1100, 330), (513, 1), (512, 512)])
def test_levels_equal_halving_the_whole_image(
    shape: tuple[int, int], make_job: Callable[..., SegmentJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = random_labels(*shape)
    job = make_job(labels, shard=256)
    write_pyramid(job.store, tmp_path / "journal")
    expected = labels
    shapes = level_shapes(job.plan)
    for level in range(1, len(shapes)):
        expected = halve(expected)
        found = job.store.read(Box(0, 0, *shapes[level]), level)
        assert found.shape == expected.shape and np.array_equal(found, expected)
    assert max(expected.shape) <= 512


def test_shards_without_data_have_no_object(make_job: Callable[..., SegmentJob], tmp_path: Path) -> None:
    labels = random_labels(1100, 330)
    labels[:] = 1
    labels[:600] = 255
    job = make_job(labels, shard=256)
    names = {name for name, _, _ in write_pyramid(job.store, tmp_path / "journal")}
    written = {row for row in range(3) if job.store.object_name(1, row, 0) in names}
    assert written == {1, 2} == {row for row in range(3) if (job.out / job.store.object_name(1, row, 0)).exists()}
    assert (job.store.read(Box(0, 0, 550, 165), 1)[:300] == 255).all()


def test_ome_zarr_reads_every_level(make_job: Callable[..., SegmentJob], tmp_path: Path) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    labels = random_labels(1050, 300)
    job = make_job(labels, shard=256, spacing=Spacing(0.5, 0.25, "um"))
    write_pyramid(job.store, tmp_path / "journal")
    location = parse_url(job.store.root / "classes")
    assert location is not None
    (node, *_) = list(Reader(location)())
    expected = labels
    assert len(node.data) == 3
    for level, array in enumerate(node.data):
        assert np.array_equal(np.asarray(array), expected)
        scale = node.metadata["coordinateTransformations"][level][0]["scale"]
        assert scale == [0.5 * 2**level, 0.25 * 2**level]
        expected = halve(expected)


def test_napari_shows_every_level_in_its_place_and_colours(make_job: Callable[..., SegmentJob], tmp_path: Path) -> None:
    from napari_ome_zarr import napari_get_reader

    labels = random_labels(1050, 300)
    job = make_job(labels, shard=256, spacing=Spacing(0.5, 0.25, "um"))
    write_pyramid(job.store, tmp_path / "journal")
    read = napari_get_reader(str(job.store.root / "classes"))
    assert read is not None
    ((levels, metadata, kind),) = read(str(job.store.root / "classes"))
    assert kind == "labels" and len(levels) == 3
    expected = labels
    for level in levels:
        assert np.array_equal(np.asarray(level), expected)
        expected = halve(expected)
    place = np.asarray(metadata["affine"].affine_matrix) @ np.diag([*metadata["scale"], 1.0])
    assert np.allclose(place, np.diag([0.5, 0.25, 1.0]))
    assert metadata["axis_labels"] == ("y", "x")
    assert metadata["properties"]["class"] == [*(info.name for info in job.classes), "no data"]
    for info in job.classes:
        assert np.allclose(np.multiply(metadata["colormap"][info.value][:3], 255), info.color)
    assert metadata["colormap"][255][3] == 0


def test_shards_in_the_journal_are_not_written_again(
    make_job: Callable[..., SegmentJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = random_labels(1100, 600)
    labels[labels == 255] = 0
    job = make_job(labels, shard=256)
    journal = tmp_path / "journal"
    objects = write_pyramid(job.store, journal)
    before = {path: (job.out / path).read_bytes() for path, _, _ in objects}
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:-3], lines[-3][:20]]))  # the last line is torn
    lost = {path for path in before if any(path in line for line in lines[-3:])}
    (job.out / objects[0][0]).unlink()  # and an object is gone, as after a power cut
    lost.add(objects[0][0])
    written: list[str] = []
    original = pyramid._write_shard

    def spy(store: object, target: pyramid._Target, reduce: object) -> Path | None:
        written.append(target.object)
        return original(store, target, reduce)  # type: ignore[arg-type]

    monkeypatch.setattr(pyramid, "_write_shard", spy)
    assert sorted(write_pyramid(job.store, journal)) == sorted(objects)
    assert lost == set(written)
    assert {path: (job.out / path).read_bytes() for path in before} == before
