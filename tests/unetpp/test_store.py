"""The label store: its layout read by another library, its faults found, foreign data left alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unetpp.durable import file_sha256
from unetpp.errors import StoreError
from unetpp.geometry import Box, Spacing
from unetpp.package import ClassInfo
from unetpp.store import LabelStore
from unetpp.tiling import TilePlan, make_plan

CLASSES = (
    ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
    ClassInfo(value=3, name="nucleus", color=(220, 40, 10)),
)


@dataclass(frozen=True)
class Grid:
    spacing: Spacing | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    step_y: float = 1.0
    step_x: float = 1.0


def make_store(folder: Path, *, height: int = 150, width: int = 210, **grid: Any) -> LabelStore:
    plan = make_plan(height, width, halo=16, multiple=16, core=64, shard=128)
    return LabelStore.create(folder, plan, Grid(**grid), CLASSES)  # type: ignore[arg-type]


def draw(plan: TilePlan, seed: int = 0) -> NDArray[np.uint8]:
    values = np.array([0, 3, 255], np.uint8)
    return values[np.random.default_rng(seed).integers(0, 3, (plan.height, plan.width))]


def fill(store: LabelStore, labels: NDArray[np.uint8]) -> None:
    for shard in store.plan.shards():
        store.write_shard(shard, labels[shard.box.slices()])


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_bytes_are_the_same_in_any_folder_and_order(tmp_path: Path) -> None:
    stores = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        stores.append(make_store(tmp_path / name, spacing=Spacing(0.25, 0.25, "um")))
    labels = draw(stores[0].plan)
    fill(stores[0], labels)
    for shard in reversed(stores[1].plan.shards()):
        stores[1].write_shard(shard, labels[shard.box.slices()])
    first, second = (hashes(store.root) for store in stores)
    assert first == second and len(first) == 3 + 4


@pytest.mark.parametrize("name", ["file", "other zarr", "broken"])
def test_a_store_of_somebody_else_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    target = tmp_path / "labels.ome.zarr"
    if name == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "zarr.json").write_text('{"zarr_format":3,"node_type":"group"}' if name == "other zarr" else "{")
    before = hashes(tmp_path)
    # What a job is known to have written there and is damaged since is put right.
    for keep in (False,) if name == "broken" else (True, False):
        plan = make_plan(150, 210, halo=16, multiple=16, core=64)
        with pytest.raises(StoreError, match="move it away"):
            LabelStore.create(tmp_path, plan, Grid(), CLASSES, keep=keep)  # type: ignore[arg-type]
    assert hashes(tmp_path) == before


def test_creating_again_keeps_or_discards_the_shards(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    fill(store, draw(store.plan))
    before = hashes(store.root)
    for lost in ("zarr.json", "classes/zarr.json", "classes/0/zarr.json"):
        (store.root / lost).unlink()
        make_store(tmp_path)
        assert hashes(store.root) == before
    (store.root / "zarr.json").write_text("{")
    make_store(tmp_path)
    assert hashes(store.root) == before
    plan = make_plan(90, 70, halo=16, multiple=16, core=64)
    smaller = LabelStore.create(tmp_path, plan, Grid(), CLASSES, keep=False)  # type: ignore[arg-type]
    assert (smaller.read(Box(0, 0, 90, 70)) == 255).all()
    assert len(hashes(store.root)) == 3 and sorted(p.name for p in tmp_path.iterdir()) == ["labels.ome.zarr"]


def test_what_an_interrupted_creation_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".labels.ome.zarr.new" / "classes").mkdir(parents=True)
    (tmp_path / "..labels.ome.zarr.discarded").mkdir()
    store = make_store(tmp_path)
    assert (store.read(Box(0, 0, 2, 2)) == 255).all()
    assert not (tmp_path / ".labels.ome.zarr.new").exists()


def test_ome_zarr_reads_classes_colours_and_scale(tmp_path: Path) -> None:
    import zarr
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Label, Labels, Multiscales, Reader
    from ome_zarr_models.v05.image_label import ImageLabel

    store = make_store(tmp_path, height=900, width=1300, spacing=Spacing(0.5, 0.25, "um"))
    labels = draw(store.plan)
    fill(store, labels)
    for index in range(1, store.level_count):
        store.create_level(index)
        part = labels[:: 2**index, :: 2**index]
        zarr.open_array(store.root / "classes" / str(index))[...] = part

    root, node = list(Reader(parse_url(str(store.root)))())
    assert [type(spec) for spec in root.specs] == [Labels]
    assert {type(spec) for spec in node.specs} == {Label, Multiscales}
    assert [level.shape for level in node.data] == [(900, 1300), (450, 650), (225, 325)]
    assert np.array_equal(node.data[0].compute(), labels)
    assert node.metadata["color"][3] == [220 / 255, 40 / 255, 10 / 255, 1.0]
    assert node.metadata["color"][0][3] == node.metadata["color"][255][3] == 0.0
    assert node.metadata["properties"][3] == {"class": "nucleus"}
    assert [axis["unit"] for axis in node.metadata["axes"]] == ["micrometer", "micrometer"]
    assert node.metadata["coordinateTransformations"][2] == [
        {"type": "scale", "scale": [2.0, 1.0]},
        {"type": "translation", "translation": [0.75, 0.375]},
    ]
    assert ImageLabel.from_zarr(zarr.open_group(store.root / "classes", mode="r")).attributes.ome.version == "0.5"


def test_pixels_of_a_resampled_output_lie_where_the_image_has_them(tmp_path: Path) -> None:
    """In a program that draws the image's first pixel round 0, as OME-Zarr has it."""
    store = make_store(tmp_path, width=600, spacing=Spacing(1.0, 0.5, "um"), step_y=4.0, step_x=1.6)
    document = json.loads((store.root / "classes" / "zarr.json").read_text())
    for level, dataset in enumerate(document["attributes"]["ome"]["multiscales"][0]["datasets"]):
        (scale, translation) = dataset["coordinateTransformations"]
        for axis, (step, source) in enumerate(((4.0, 0.25), (1.6, 0.3125))):
            for index in (0, 7):
                centre = (index + 0.5) * 2**level * step - 0.5  # in pixels of the image
                place = index * scale["scale"][axis] + translation["translation"][axis]
                assert place == pytest.approx(centre * source)


def test_axes_have_no_unit_where_the_size_of_a_pixel_is_unknown(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    scale = json.loads((store.root / "classes" / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert scale["axes"] == [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    assert scale["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 1.0]


def test_xarray_and_rioxarray_find_where_a_scene_lies(tmp_path: Path) -> None:
    import rasterio
    import rioxarray  # noqa: F401
    import xarray

    from unetpp.maps import MapStore

    wkt, place = rasterio.CRS.from_epsg(32633).to_wkt(), (0.3, 0.0, 5e5 + 0.1, 0.0, -0.3, 5e6 + 1 / 3)
    grid = Grid(Spacing(0.3, 0.3, "m"), wkt, place)
    plan = make_plan(600, 700, halo=16, multiple=16, core=64, shard=128)
    labels = LabelStore.create(tmp_path, plan, grid, CLASSES)  # type: ignore[arg-type]
    labels.create_level(1)
    map_store = MapStore(tmp_path, plan, "uncertainty", CLASSES)
    map_store.create(grid)  # type: ignore[arg-type]
    for folder in (labels.root / "classes", map_store.root):
        options = {"consolidated": False, "drop_variables": ["1"], "mask_and_scale": False, "decode_coords": "all"}
        found = xarray.open_zarr(folder, **options)["0"]
        assert found.rio.crs.to_epsg() == 32633
        assert tuple(found.rio.transform())[:6] == place
        assert found.rio.bounds() == pytest.approx((5e5 + 0.1, 5e6 + 1 / 3 - 180, 5e5 + 210.1, 5e6 + 1 / 3))
    (tmp_path / "slide").mkdir()
    nowhere = make_store(tmp_path / "slide", spacing=Spacing(0.5, 0.5, "um"))
    assert not (nowhere.root / "classes/spatial_ref").exists()
