"""What is wrong with a data set as a whole, and what only looks so: classes, splits, copies, bands, pixel sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from scipy import ndimage

from unetpp_workflows.prepare.build import prepare
from unetpp_workflows.prepare.dataset import Dataset

GLOBS: dict[str, Any] = {
    "images": "images/*.png",
    "labels": "masks/{stem}.png",
    "group_pattern": "^([a-z]+)",
    "validation": ["v"],
}


@pytest.mark.parametrize(
    ("spoil", "level", "text"),
    [
        ("size", "error", "give labels of the image's size"),
        ("copy", "error", "one picture in two splits"),
        ("jpeg", "warning", "look alike"),
        ("bands", "error", "most images have 3 band"),
        ("legend", "warning", "outside the legend"),
        ("empty", "warning", "class without a pixel in val: roof"),
        ("unlabelled", "error", "no image of the split val has a labelled pixel"),
        ("damaged", "error", "does not decode"),
    ],
)
def test_faults_are_found(
    spoil: str, level: str, text: str, described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    drawn = photos({"a1": (64, 64), "a2": (64, 64), "v1": (64, 64)})
    image, mask = tmp_path / "images/v1.png", tmp_path / "masks/v1.png"
    labels = drawn["v1"][1].copy()
    if spoil == "size":
        Image.fromarray(labels[1:]).save(mask)
    elif spoil == "copy":
        image.write_bytes((tmp_path / "images/a1.png").read_bytes())
    elif spoil == "jpeg":
        smooth = ndimage.gaussian_filter(drawn["a1"][0].astype(float), (6, 6, 0)) * 8 % 255
        Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "images/a1.png")
        with Image.open(tmp_path / "images/a1.png") as photo:
            photo.save(image, "JPEG", quality=90)
    elif spoil == "bands":
        tifffile.imwrite(image.with_name("a3.tif"), drawn["v1"][0].astype(np.uint16))
        image.with_name("a3.tif").rename(image)
    elif spoil == "legend":
        labels[:5] = 77
        Image.fromarray(labels).save(mask)
    elif spoil == "empty":
        Image.fromarray(labels % 2).save(mask)
    elif spoil == "unlabelled":
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(mask)
    else:
        image.write_bytes(image.read_bytes()[:2000])
    prepared = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    assert any(fault.level == level and text in str(fault) for fault in prepared.faults), prepared.faults
    assert (prepared.facts is None) == (level == "error") == (not (tmp_path / "s.zarr").exists())


@pytest.mark.parametrize(
    ("one", "other", "fit"),
    [
        (("", "", ""), ("nir", "red", "green"), False),  # GDAL writes three bands of bytes as red, green and blue
        (("B4", "B3", "B2"), ("B2", "B3", "B4"), False),
        (("red", "green", "blue", "nir"), ("red", "green", "blue", "swir"), False),
        (("red", "green", "blue", "nir"), ("", "", "", ""), True),
        (("Red", "Green", "Blue"), ("", "", ""), True),
        (("nir",), ("",), True),
        (("nir",), ("swir",), False),
    ],
)
def test_images_with_other_bands_are_named(
    one: tuple[str, ...], other: tuple[str, ...], fit: bool, described: Callable[..., Dataset], photos: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    photos({"a1": (40, 40), "b1": (40, 40), "v1": (40, 40)})
    random = np.random.default_rng(3)
    dtype = np.uint8 if len(one) == 3 else np.uint16  # of four bands of bytes GDAL makes the last one alpha
    for name, bands in {"a1": one, "b1": one, "v1": other}.items():
        with rasterio.open(
            tmp_path / "images" / f"{name}.png", "w", driver="GTiff", height=40, width=40, count=len(bands),
            dtype=dtype, crs="EPSG:32636", transform=rasterio.transform.from_origin(323000, 39200, 1, 1),
        ) as image:  # fmt: skip
            image.write(random.integers(0, 256, (len(bands), 40, 40), dtype))
            image.descriptions = bands
    prepared = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr")
    assert (prepared.facts is not None) == fit
    if not fit:
        found = [str(fault) for fault in prepared.errors]
        ours = ", ".join(one) if any(one) else "red, green, blue"
        assert len(found) == 1 and f"a1 has the bands {ours}, v1 has {', '.join(other)};" in found[0]
