"""Training stores beside zarr-python's own reading of them, and beside their export."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from unetpp.errors import StoreError
from unetpp.geometry import Box
from unetpp.train.store import ATTRIBUTES, FORMAT, PATCH_ARRAYS, PatchStore, export

SIDE, BANDS, PER_SHARD = 16, 2, 4


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two images, 40 x 50 (train) and 16 x 20 (val), of which patch (1, 1) of the first is not stored."""
    random = np.random.default_rng(0)
    images = [("one", "train", 40, 50), ("two", "val", 16, 20)]
    places = [(n, y, x, min(y + SIDE, h), min(x + SIDE, w)) for n, (_, _, h, w) in enumerate(images)
              for y in range(0, h, SIDE) for x in range(0, w, SIDE) if (n, y, x) != (0, SIDE, SIDE)]  # fmt: skip
    count = len(places)
    valid = np.zeros((count, SIDE, SIDE), bool)
    for number, (_, y0, x0, y1, x1) in enumerate(places):
        valid[number, : y1 - y0, : x1 - x0] = random.random((y1 - y0, x1 - x0)) > 0.1
    labels = np.where(valid, random.integers(0, 3, valid.shape), 255).astype(np.uint8)
    labels[2] = 255
    arrays = {
        "pixels": np.where(valid[..., None], random.integers(0, 60000, (*valid.shape, BANDS)), 0).astype(np.uint16),
        "labels": labels,
        "valid": valid,
        "objects": np.where(labels < 255, random.integers(0, 99, valid.shape), 0).astype(np.int32),
    }
    root = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    sizes = []
    for name, values in arrays.items():
        inner = values.shape[1:]
        layout: Any = {"chunks": (1, *inner), "shards": (PER_SHARD, *inner), "compressors": ZstdCodec(checksum=True)}
        array = root.create_array(name, shape=values.shape, dtype=values.dtype, **layout)
        array.with_config({"write_empty_chunks": True})[...] = values
        shards = range(-(-count // PER_SHARD))
        zeros = "/".join(["0"] * len(inner))
        sizes.append([(tmp_path / "s.zarr" / name / "c" / str(shard) / zeros).stat().st_size for shard in shards])
    counts = np.stack([np.bincount(part[part < 255], minlength=3) for part in labels])
    tables = {
        "image": np.array([place[0] for place in places], np.int32),
        "box": np.array([place[1:] for place in places], np.int32),
        "counts": counts,
        "sizes": np.array(sizes).T,
    }
    for name, values in tables.items():
        root.create_array(name, data=values)
    classes = [{"value": k, "name": f"c{k}", "color": [k, k, k], "background": k == 0} for k in range(3)]
    root.attrs.put({ATTRIBUTES: {
        "format": FORMAT, "complete": True, "side": SIDE, "classes": classes, "bands": ["a", "b"], "dtype": "uint16",
        "spacing": {"y": 0.5, "x": 0.5, "unit": "um"}, "mean": [1000.4, 2000.6], "std": [5.0, 6.0],
        "frequencies": [0.3, 0.3, 0.4], "fingerprint": "f", "objects": True, "within_group": False, "guard": 0,
        "images": [{"name": n, "group": n, "stratum": f"kind {n}", "split": s, "height": h, "width": w}
                   for n, s, h, w in images],
        "splits": {"train": {"fingerprint": "ft"}, "val": {"fingerprint": "fv"}},
    }})  # fmt: skip
    return tmp_path / "s.zarr"


def expected(
    store: Path, image: int, height: int, width: int, fill: tuple[int, int] = (1000, 2001)
) -> tuple[Any, Any, Any]:
    """Put an image together with zarr-python and plain loops."""
    root = zarr.open_group(store, mode="r")
    pixels = np.empty((height, width, BANDS), np.uint16)
    pixels[:] = fill
    labels, objects = np.full((height, width), 255, np.uint8), np.zeros((height, width), np.int32)
    content = {name: np.asarray(root[name][...]) for name in (*PATCH_ARRAYS, "image", "box")}  # type: ignore[index]
    for number in np.flatnonzero(content["image"] == image):
        y0, x0, y1, x1 = content["box"][number]
        for y in range(y0, y1):
            for x in range(x0, x1):
                here = number, y - y0, x - x0
                if content["valid"][here]:
                    pixels[y, x] = content["pixels"][here]
                labels[y, x], objects[y, x] = content["labels"][here], content["objects"][here]
    return pixels, labels, objects


@pytest.mark.parametrize("exported", [False, True])
def test_any_box_is_put_together_from_patches(store: Path, exported: bool, tmp_path: Path) -> None:
    opened = PatchStore.open(export(store, tmp_path / "plain") if exported else store)
    truth = expected(store, 0, 40, 50)
    source = opened.source("train")
    random = np.random.default_rng(1)
    boxes = [Box(0, 0, 40, 50), Box(16, 16, 32, 32), Box(0, 0, 16, 16), Box(3, 5, 12, 16), Box(39, 49, 40, 50)]
    for _ in range(60):
        (y0, y1), (x0, x1) = (np.sort(random.choice(n + 1, 2, replace=False)).tolist() for n in (40, 50))
        boxes.append(Box(y0, x0, y1, x1))

    def check(box: Box) -> bool:
        crop = source.read(0, box)
        assert crop.pixels.dtype == np.uint16 and crop.objects is not None
        parts = zip((crop.pixels, crop.labels, crop.objects), truth, strict=True)
        return all((part == whole[box.slices()]).all() for part, whole in parts)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, boxes * 3))


def test_a_network_of_another_mean_sees_that_mean_where_there_is_no_data(store: Path) -> None:
    opened = PatchStore.open(store)
    whole, box = opened.source("train"), Box(0, 0, 40, 50)
    ours = whole.read(0, box).pixels
    theirs = opened.filled((7.5001, 70000.0)).source("train").read(0, box).pixels
    assert (theirs == expected(store, 0, 40, 50, (8, 65535))[0]).all() and (theirs != ours).any()
    assert (whole.read(0, box).pixels == expected(store, 0, 40, 50)[0]).all()


def test_a_store_says_what_it_holds(store: Path) -> None:
    opened = PatchStore.open(store)
    assert (opened.bands, opened.dtype, opened.side) == (("a", "b"), "uint16", SIDE)
    assert [info.name for info in opened.classes] == ["c0", "c1", "c2"] and opened.splits == ("train", "val")
    source = opened.source("train")
    assert source.span.high == (1000.4 + 3 * 5, 2000.6 + 3 * 6) and source.fingerprint == "ft"
    assert [(image.name, image.stratum) for image in source.images] == [("one", "kind one")]
    # Ten of the twelve patches have labels: one is not stored, one has none.
    assert len(source.blocks.image) == 10 and (source.blocks.counts.sum(1) > 0).all()
    assert source.blocks.box.max(0).tolist()[2:] == [40, 50]
    with pytest.raises(StoreError, match="no split 'test'; it has train, val"):
        opened.source("test")


def test_what_is_read_is_the_readers_own(store: Path) -> None:
    source = PatchStore.open(store).source("train")
    first = source.read(0, Box(0, 0, 16, 16))
    first.pixels[:] = 0
    first.labels[:] = 0
    assert (source.read(0, Box(0, 0, 16, 16)).pixels == expected(store, 0, 40, 50)[0][:16, :16]).all()


def test_damage_is_found(store: Path) -> None:
    shard = store / "pixels/c/0/0/0/0"
    content = shard.read_bytes()
    shard.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    opened = PatchStore.open(store)
    with pytest.raises(StoreError, match="damaged at patch 0"):
        opened.patch(0)
    shard.write_bytes(content[:-1])
    with pytest.raises(StoreError, match="cut short"):
        PatchStore.open(store)
    shard.unlink()
    with pytest.raises(StoreError, match="missing"):
        PatchStore.open(store)


def test_what_is_no_finished_store_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no training store"):
        PatchStore.open(tmp_path)
    document = json.loads((store / "zarr.json").read_text())
    for key, value, said in (("complete", False, "not finished"), ("format", 99, "has format 99")):
        changed = {**document["attributes"][ATTRIBUTES], key: value}
        (store / "zarr.json").write_text(json.dumps({**document, "attributes": {ATTRIBUTES: changed}}))
        with pytest.raises(StoreError, match=said):
            PatchStore.open(store)


def test_an_export_needs_no_zarr(store: Path, tmp_path: Path) -> None:
    folder = export(store, tmp_path / "plain")
    script = (
        "import sys; sys.modules['zarr'] = sys.modules['numcodecs'] = None\n"
        "from unetpp.train.store import PatchStore; from unetpp.geometry import Box\n"
        f"source = PatchStore.open({str(folder)!r}).source('val')\n"
        "print(source.read(0, Box(0, 0, 16, 20)).labels.shape)"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "(16, 20)"


def test_an_export_that_was_copied_in_part_is_refused(store: Path, tmp_path: Path) -> None:
    folder = export(store, tmp_path / "plain")
    for name in ("store.json", "labels.npy", "counts.npy"):
        content = (folder / name).read_bytes()
        for length in (0, len(content) // 2):
            (folder / name).write_bytes(content[:length])
            with pytest.raises(StoreError, match=r"is damaged .*copy it, or export the store, again"):
                PatchStore.open(folder)
        (folder / name).write_bytes(content)
    (folder / "box.npy").unlink()
    with pytest.raises(StoreError, match=r"lacks box\.npy; export"):
        PatchStore.open(folder)
