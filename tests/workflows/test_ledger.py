"""What of an archive counts as changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from unetpp_workflows.inputs import Source
from unetpp_workflows.ledger import Ledger, stamp, sync


@pytest.mark.parametrize("name", ["x.png", "clip.mp4"])
def test_a_file_or_what_lies_in_it_changes_with_the_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"1")
    uri = f"{file}#17" if name != "x.png" else str(file)
    before = stamp(uri)
    assert before is not None and before == stamp(str(file))
    file.write_bytes(b"12")
    assert stamp(uri) not in (None, before)
    file.unlink()
    assert stamp(uri) is None


def _pair(image: str, part: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        for name in (image, part):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"1")
        return folder / image, folder / part

    return make


_mirax = _pair("slide.mrxs", "slide/Data0000.dat")
_dicom = _pair("0.dcm", "1.dcm")
_beside = _pair("a.tif", "a.tif.msk")
_placed = _pair("a.png", "a.pgw")


def _vms(folder: Path) -> tuple[Path, Path]:
    (folder / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=\n")
    (folder / "a.jpg").write_bytes(b"1")
    return folder / "a.vms", folder / "a.jpg"


def _scene(file: Path) -> Path:
    facts = {"count": 3, "dtype": "uint8", "crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 1, 1)}
    with rasterio.open(file, "w", driver="GTiff", height=20, width=30, **facts) as made:
        made.write(np.full((3, 20, 30), 7, np.uint8))
    return file


def _vrt(folder: Path) -> tuple[Path, Path]:
    import rasterio.shutil

    part = _scene(folder / "part.tif")
    rasterio.shutil.copy(part, folder / "a.vrt", driver="VRT")
    return folder / "a.vrt", part


def _mosaic(folder: Path) -> tuple[Path, Path]:
    for name in ("0.png", "1.png"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / name)
    parts = '[{ uri = "0.png", x = 0, y = 0 }, { uri = "1.png", x = 30, y = 0 }]'
    (folder / "a.mosaic.toml").write_text(f"rule = 'first'\nparts = {parts}")
    return folder / "a.mosaic.toml", folder / "1.png"


def _bands(folder: Path) -> tuple[Path, Path]:
    part = _scene(folder / "part.tif")
    (folder / "a.bands.toml").write_text("bands = [{ uri = 'part.tif', band = 1 }, { uri = 'part.tif', band = 2 }]")
    return folder / "a.bands.toml", part


@pytest.mark.parametrize("make", [_mirax, _dicom, _vms, _beside, _placed, _vrt, _mosaic, _bands])
def test_an_image_of_several_files_changes_with_each(tmp_path: Path, make: Callable[[Path], tuple[Path, Path]]) -> None:
    image, part = make(tmp_path)
    source, ledger = Source(str(image), tmp_path / "out/a"), Ledger()
    sync(ledger, [source], complete=True)
    before = stamp(str(image))
    assert before is not None and before == stamp(str(image))
    ledger.settle(source.uri, "done", None, "")
    os.utime(part, (2e9, 2e9))
    assert stamp(str(image)) not in (None, before)
    assert sync(ledger, [source], complete=True).changed == ("a",)


def test_a_night_sees_that_a_file_of_many_images_changed(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"1")
    sources = [Source(f"{clip}#{frame}", tmp_path / f"out/clip_{frame}") for frame in range(2)]
    ledger = Ledger()
    sync(ledger, sources, complete=True)
    for source in sources:
        ledger.settle(source.uri, "done", None, "")
    os.utime(clip, (1e9, 1e9))
    assert sync(ledger, sources, complete=True).changed == ("clip_0", "clip_1")
