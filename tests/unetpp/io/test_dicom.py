"""DICOM slides: every level's pixels are those of its JPEG tiles; folders of one and of several slides."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.dicom import write_slide
from unetpp.errors import ImageFormatError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster
from unetpp.io.base import fingerprint, other_files
from unetpp.io.dicom import slides_in


def _levels(make: Any, seed: int = 0) -> list[np.ndarray]:
    small = make.noise((180, 250, 3), seed=seed)
    return [np.asarray(Image.fromarray(small).resize((n, n * 18 // 25))) for n in (1000, 500, 250)]


@pytest.mark.proves("DICOM whole slide")
def test_every_level_has_the_pixels_of_its_tiles(make: Any, boxes: Callable[..., list[Box]], tmp_path: Path) -> None:
    truth = write_slide(tmp_path / "slide", _levels(make), 0.5)
    for path in (tmp_path / "slide", tmp_path / "slide/level0.dcm", tmp_path / "slide/level2.dcm"):
        with open_raster(path) as raster:
            assert (raster.kind, raster.format, raster.uri) == ("slide", "openslide/dicom", str(path))
            assert raster.spacing == Spacing(0.5, 0.5, "um")
            assert [level.downsample for level in raster.levels] == [1, 2, 4]
            for number, pixels in enumerate(truth):
                for box in (raster.levels[number].box, *boxes(raster, number, count=2)):
                    np.testing.assert_array_equal(raster.read(box, number).pixels, pixels[box.slices()])


def test_slides_of_a_folder_are_told_apart_by_their_series(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    first = write_slide(folder, _levels(make), 0.5)
    for file in list(folder.glob("*.dcm")):
        file.rename(folder / f"a_{file.name}")
    second = write_slide(folder, _levels(make, seed=1), 0.25)
    assert [file.name for file in slides_in(folder)] == ["a_level0.dcm", "level0.dcm"]
    with pytest.raises(ImageFormatError, match="holds 2 DICOM slides; give a file of one, such as a_level0"):
        open_raster(folder)
    for file, truth in zip(slides_in(folder), (first, second), strict=True):
        with open_raster(file) as raster:
            np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, truth[0])


def test_a_slide_is_no_other_one_for_what_comes_into_its_folder(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    write_slide(folder, _levels(make), 0.5)
    before = fingerprint(folder / "level0.dcm")
    assert [file.name for file in other_files(folder / "level0.dcm")] == ["level1.dcm", "level2.dcm"]
    write_slide(tmp_path / "more", _levels(make, seed=1), 0.5)
    for file in (tmp_path / "more").iterdir():
        file.rename(folder / f"b_{file.name}")
    (folder / "Thumbs.db").write_bytes(b"no slide")
    assert fingerprint(folder / "level0.dcm") == before
    assert [file.name for file in other_files(folder / "b_level1.dcm")] == ["b_level0.dcm", "b_level2.dcm"]
    os.utime(folder / "level2.dcm", (1e9, 1e9))
    assert fingerprint(folder / "level0.dcm") != before


@pytest.mark.parametrize("undefined", [False, True])
def test_series_that_a_slide_only_refers_to_are_not_its_own(make: Any, tmp_path: Path, undefined: bool) -> None:
    """Two slides made from a third, as they say before they say their own series; and annotations beside them."""
    for name in "ab":
        write_slide(tmp_path, [_levels(make)[2]], 0.5)
        file = pydicom.dcmread(tmp_path / "level0.dcm")
        other = pydicom.Dataset()
        other.SeriesInstanceUID, other.ReferencedInstanceSequence = "1.2.3", [pydicom.Dataset()]
        other.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"
        file.ReferencedSeriesSequence = [other]
        for sequence in (other["ReferencedInstanceSequence"], file["ReferencedSeriesSequence"]):
            sequence.is_undefined_length = sequence.value[0].is_undefined_length_sequence_item = undefined
        file.save_as(tmp_path / f"{name}.dcm")
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.91.1"
    file.SeriesInstanceUID = "1.2.5"
    file.save_as(tmp_path / "annotations.dcm")
    (tmp_path / "level0.dcm").unlink()
    assert [found.name for found in slides_in(tmp_path)] == ["a.dcm", "b.dcm"]


def test_fingerprint_follows_every_file(make: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "slide", _levels(make), 0.5)
    before = fingerprint(tmp_path / "slide")
    assert fingerprint(tmp_path / "slide") == before
    file = tmp_path / "slide/level1.dcm"
    file.write_bytes(file.read_bytes() + b"\0\0")
    assert fingerprint(tmp_path / "slide") != before
