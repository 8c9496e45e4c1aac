"""Intersection over union against a brute-force count, on grids finer, equal and coarser than the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from pyproj import CRS
from rasterio.transform import from_origin

from unetpp.errors import ConfigError, DataError
from unetpp.io.resample import OutputGrid
from unetpp.package import ClassInfo
from unetpp.store import LabelStore
from unetpp.tiling import make_plan
from unetpp_workflows.truth import Truth, _by_stem, find_truth, score

CLASSES = tuple(ClassInfo(value=v, name=n, color=(v, v, v)) for v, n in ((0, "rest"), (1, "road"), (4, "water")))
Made = tuple[LabelStore, OutputGrid]


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[..., Made]:
    def make(labels: np.ndarray, step: float) -> Made:
        height, width = labels.shape
        grid = OutputGrid(
            height=height, width=width, step_y=step, step_x=step, level=0, spacing=None, transform=None, crs=None
        )
        store = LabelStore.create(tmp_path, make_plan(height, width, halo=0, multiple=16, core=32), grid, CLASSES)
        for shard in store.plan.shards():
            store.write_shard(shard, labels[shard.box.slices()])
        return store, grid

    return make


def _png(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_iou_equals_a_brute_force_count(labelled: Callable[..., Made], tmp_path: Path, step: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 4, 255], (70, 50)).astype(np.uint8)
    true = rng.choice([0, 1, 4, 9, 255], (round(70 * step), round(50 * step)))
    found = score(*labelled(labels, step), CLASSES, Truth(_png(tmp_path / "truth.png", true)))
    common, either = dict.fromkeys((0, 1, 4), 0), dict.fromkeys((0, 1, 4), 0)
    for y in range(70):
        for x in range(50):
            mine, theirs = labels[y, x], true[int((y + 0.5) * step), int((x + 0.5) * step)]
            if mine == 255 or theirs in (9, 255):  # 9 is no class of the model
                continue
            for value in common:
                common[value] += mine == value == theirs
                either[value] += value in (mine, theirs)
    assert found == {c.name: pytest.approx(common[c.value] / either[c.value]) for c in CLASSES}


def test_only_mapped_classes_are_scored_and_absent_ones_left_out(labelled: Callable[..., Made], tmp_path: Path) -> None:
    labels = np.zeros((32, 32), np.uint8)
    labels[:8] = 4
    true = np.zeros((32, 32))
    true[:16] = 77
    made = labelled(labels, 1.0)
    path = _png(tmp_path / "truth.png", true)
    assert score(*made, CLASSES, Truth(path, {"water": 77})) == {"water": 0.5}
    assert score(*made, CLASSES, Truth(path, {"road": 3})) == {}
    with pytest.raises(ConfigError, match="did you mean 'water'"):
        score(*made, CLASSES, Truth(path, {"Water": 77}))


@pytest.mark.parametrize("kind", ["palette", "bit", "tiff", "16 bit"])
def test_values_are_those_that_are_stored(labelled: Callable[..., Made], tmp_path: Path, kind: str) -> None:
    """Not the colours that a palette or a black-and-white picture shows."""
    true = np.random.default_rng(0).choice([0, 1] if kind == "bit" else [0, 1, 4], (32, 48)).astype(np.uint8)
    path, classes = tmp_path / ("truth.tif" if kind == "tiff" else "truth.png"), {"road": 1, "water": 4}
    if kind == "tiff":
        with rasterio.open(path, "w", "GTiff", 48, 32, 1, dtype="uint8", nodata=0) as file:
            file.write(true, 1)
            file.write_colormap(1, {1: (0, 0, 4), 4: (1, 1, 1)})
    elif kind == "16 bit":
        Image.fromarray(true.astype(np.uint16) * 300).save(path)
        classes = {"road": 300, "water": 1200}
    elif kind == "bit":
        Image.fromarray(true.astype(bool)).save(path)
    else:
        picture = Image.fromarray(true, "P")
        picture.putpalette([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0])
        picture.save(path)
    labels = true.copy()
    labels[:16, :24] = 1
    found = score(*labelled(labels, 1.0), CLASSES, Truth(path, classes))
    counts = true > 0 if kind == "tiff" else np.ones_like(true, bool)
    for info in CLASSES[1:]:
        mine, theirs = (labels == info.value) & counts, (true == info.value) & counts
        either = (mine | theirs).sum()
        assert found.get(info.name) == (pytest.approx((mine & theirs).sum() / either) if either else None)


def test_a_truth_in_colours_is_refused(labelled: Callable[..., Made], tmp_path: Path) -> None:
    colors = np.zeros((32, 32, 3))
    colors[:8, :, 1] = 128
    with pytest.raises(DataError, match=r"truth\.png: truth holds colours; give a raster with one value per class"):
        score(*labelled(np.zeros((32, 32), np.uint8), 1.0), CLASSES, Truth(_png(tmp_path / "truth.png", colors)))


def test_a_truth_of_another_size_is_refused(labelled: Callable[..., Made], tmp_path: Path) -> None:
    made = labelled(np.zeros((32, 32), np.uint8), 1.0)
    with pytest.raises(DataError, match="32 x 40 px"):
        score(*made, CLASSES, Truth(_png(tmp_path / "truth.png", np.zeros((40, 32)))))


@pytest.mark.parametrize(
    ("crs", "shift", "refused"),
    [
        ("EPSG:32636", 0, None),
        ("EPSG:32636", 0.4, None),
        ("EPSG:32636", 3, "lies 3 px away from it"),
        ("EPSG:3857", 0, "lies [0-9]{5,} px away from it"),
        ('LOCAL_CS["site",UNIT["metre",1]]', 0, "CRS 'site' has no known relation to the image's"),
    ],
)
def test_a_truth_of_the_image_s_size_that_lies_elsewhere_is_refused(
    labelled: Callable[..., Made], tmp_path: Path, crs: str, shift: float, refused: str | None
) -> None:
    store, grid = labelled(np.ones((40, 50), np.uint8), 2.0)
    grid = replace(grid, crs=CRS.from_epsg(32636).to_wkt(), transform=(1.0, 0.0, 449000.0, 0.0, -1.0, 36500.0))
    place = from_origin(449000 + 0.5 * shift, 36500, 0.5, 0.5)
    path = tmp_path / "truth.tif"
    options = {"height": 80, "width": 100, "count": 1, "dtype": "uint8", "crs": crs, "transform": place}
    with rasterio.open(path, "w", driver="GTiff", **options) as file:
        file.write(np.ones((1, 80, 100), np.uint8))
    if refused is None:
        assert score(store, grid, CLASSES, Truth(path)) == {"road": 1.0}
    else:
        with pytest.raises(DataError, match=refused):
            score(store, grid, CLASSES, Truth(path))


def test_a_folder_of_truths_is_searched_by_name(tmp_path: Path) -> None:
    path = _png(tmp_path / "scene.png", np.zeros((4, 4)))
    assert find_truth(tmp_path, "scene") == path
    assert find_truth(path, "other") == path
    for beside in ("scene.csv", "scene.pgw", "scene.json"):
        (tmp_path / beside).write_text("1")
    _by_stem.cache_clear()
    assert find_truth(tmp_path, "scene") == path, "a world file is no raster"
    with pytest.raises(DataError, match="no truth named other"):
        find_truth(tmp_path, "other")
