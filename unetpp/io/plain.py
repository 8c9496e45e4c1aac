"""Reads PNG, JPEG and plain TIFF images; knows no slide, and takes no print dpi for a spacing."""

from __future__ import annotations

import html
import math
import re
import struct
import threading
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from unetpp.errors import CorruptImageError, ImageFormatError, ImageTooLargeError
from unetpp.geometry import Box, Spacing
from unetpp.io import jpeg
from unetpp.io.base import Kind, Mask, Pixels
from unetpp.io.georeference import georeference, is_placed_beside
from unetpp.io.reader import MAX_DECODED_PIXELS, RGB, ReaderBase, both, first_line, make_levels, valid_samples
from unetpp.io.remote import RemoteObject
from unetpp.io.tiff import DECODE_ERRORS, FINEST_PRINT_SPACING_UM, GDAL_NODATA, TiffPages

PHOTO_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_JPEG_FORMATS = ("jpeg", "mpo")  # Pillow's name for a JPEG with more pictures, of which the first is read
_GDAL_DRIVERS = {"mpo": "JPEG"}
_MICROMETRES = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_PHOTOMETRIC_MIN_IS_WHITE, _PHOTOMETRIC_PALETTE = 0, 3
_OTHER_COLORS = (jpeg.YCBCR, 8, 9, 10, 32844, 32845)
"""Samples that are no channels: YCbCr, CIELab, ICCLab, ITULab, LogL and LogLuv."""
_JPEG_COMPRESSIONS = (6, jpeg.JPEG, 33007, 34892)
_PER_INCH, _PER_CENTIMETRE = 2, 3
_ORIENTATION = 274
"""The tag of EXIF and TIFF."""


class PhotoRaster(ReaderBase):
    """A PNG, JPEG, BMP or WebP as RGB; grey is repeated, a palette is looked up, alpha 0 is invalid.

    These formats decode whole: at the first read, once, up to 2^28 pixels. The stored pixel grid is kept: an EXIF
    orientation is told, as `orientation`, and not applied. A world file beside a photo places it, as GDAL says.
    """

    kind: Kind = "image"
    bands = RGB

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self._path = path
        self._lock = threading.Lock()
        self._decoded: tuple[Pixels, Mask | None] | None = None
        with self._photo() as photo:
            self.format = str(photo.format).lower()
            width, height = photo.size
            self.orientation = _exif_orientation(photo.info.get("exif", b""))
            if photo.mode == "P":
                self.zero = np.asarray(photo.getpalette("RGB")[:3], np.uint8)
        if width * height > MAX_DECODED_PIXELS:
            raise ImageTooLargeError(
                f"{path}: {width}x{height} pixels decode whole and exceed {MAX_DECODED_PIXELS}; "
                "save it as a tiled TIFF or OME-Zarr"
            )
        self._deep = self.format == "png" and _png_bits(path) == 16
        self.dtype = np.dtype(np.uint16 if self._deep else np.uint8)
        self.levels = make_levels([(height, width)])
        if is_placed_beside(path):
            self._take_place()

    def _take_place(self) -> None:
        from unetpp.io.gdal import Dataset

        dataset = Dataset(self._path, driver=_GDAL_DRIVERS.get(self.format, self.format.upper()))
        try:
            place = dataset.run(lambda top: georeference(top, self.uri))
        finally:
            dataset.close()
        self.crs, self.transform, self.spacing, self.kind = place.crs, place.transform, place.spacing, place.kind

    def _photo(self) -> Any:
        """Open the header only. Pillow's own size limit would warn, or fail below ours, so its plugins are called."""
        Image.init()
        for name in PHOTO_FORMATS:
            factory: Any
            factory, accept = Image.OPEN[name]
            with self._path.open("rb") as file:
                prefix = file.read(16)
            if accept is None or accept(prefix) is True:
                try:
                    return factory(str(self._path), None)
                except (SyntaxError, *DECODE_ERRORS) as error:
                    raise CorruptImageError(f"{self._path}: {name} header is damaged ({first_line(error)})") from None
        raise ImageFormatError(f"{self._path}: not a PNG, JPEG, BMP or WebP image; convert it to one or to TIFF")

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        with self._lock:
            if self._decoded is None:
                self._decoded = self._decode(box)
        pixels, valid = self._decoded
        return pixels[box.slices()].copy(), None if valid is None else valid[box.slices()].copy()

    def _decode(self, box: Box) -> tuple[Pixels, Mask | None]:
        try:
            values = imagecodecs.png_decode(self._path.read_bytes()) if self._deep else self._decode_8bit()
        except (SyntaxError, UnidentifiedImageError, *DECODE_ERRORS) as error:
            raise CorruptImageError(
                f"{self.uri}: {box} does not decode ({first_line(error)}); copy the file again"
            ) from None
        return _rgb_and_alpha(np.asarray(values))

    def _decode_8bit(self) -> Pixels:
        with self._photo() as photo:
            if self.format in _JPEG_FORMATS and photo.mode in ("L", "RGB"):
                # Pillow makes up what a damaged stream may have held. CMYK, of print, is left to it.
                return jpeg.decode_photo(self._path.read_bytes(), photo.mode == "L", self.levels[0].box.shape)
            transparent = "transparency" in photo.info or photo.mode in ("PA", "La", "RGBa")
            if photo.mode in ("L", "LA", "RGB", "RGBA") and not transparent:
                return np.asarray(photo)
            return np.asarray(photo.convert("RGBA" if transparent else "RGB"))

    def close(self) -> None:
        self._decoded = None


def _rgb_and_alpha(values: Pixels) -> tuple[Pixels, Mask | None]:
    """Split (H, W), (H, W, 1..4) samples into RGB and validity: 2 and 4 samples end in alpha."""
    if values.ndim == 2:
        values = values[..., None]
    valid = values[..., -1] > 0 if values.shape[2] in (2, 4) else None
    rgb = values[..., :3] if values.shape[2] >= 3 else np.repeat(values[..., :1], 3, axis=2)
    return np.ascontiguousarray(rgb), None if valid is None or valid.all() else np.asarray(valid)


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


class TiffRaster(ReaderBase):
    """A TIFF, OME-TIFF or ImageJ TIFF without georeference: strips or tiles, any sample type, pyramid levels if any.

    Samples keep their number (grey stays one band); a palette is looked up; white-is-zero is inverted. Validity comes
    from alpha samples, GDAL's nodata tag, NaN, and tiles that were never written.
    """

    kind = "image"

    def __init__(self, source: Path | RemoteObject) -> None:
        self._pages = TiffPages(source)
        self.uri = self._pages.path
        page = self._pages.page
        self.format = "ome-tiff" if self._pages.ome_xml else "tiff"
        self.orientation = _orientation(page.tags.valueof(_ORIENTATION))
        self.levels = make_levels(self._pages.sizes)
        self._palette: Pixels | None = None
        self._bool = self._pages.dtype == bool
        self.dtype = np.dtype(np.uint8) if self._bool else self._pages.dtype.newbyteorder("=")
        self._black: int | None = None
        if page.photometric == _PHOTOMETRIC_MIN_IS_WHITE and self.dtype.kind == "u":
            self._black = 255 if self._bool else 2**page.bitspersample - 1
            self.zero = self._black
        self._alpha = [page.samplesperpixel - len(page.extrasamples) + i for i, e in enumerate(page.extrasamples) if e]
        self._colors = [i for i in range(self._pages.samples) if i not in self._alpha]
        if self._pages.samples != page.samplesperpixel:
            self._alpha, self._colors = [], list(range(self._pages.samples))
        if page.photometric == _PHOTOMETRIC_PALETTE and page.colormap is not None:
            colors = np.asarray(page.colormap).T
            # Colours are of 16 bits, but some programs write 8; libtiff and GDAL tell them apart so, too.
            self._palette = (colors >> (8 if colors.max() > 255 else 0)).astype(np.uint8)
            self.zero = self._palette[0]
            self.dtype = np.dtype(np.uint8)
        if page.photometric in _OTHER_COLORS and not _decodes_to_rgb(page):
            raise ImageFormatError(f"{self.uri}: stores colours as {page.photometric.name}; convert the image to RGB")
        if self.dtype.kind not in "uif":
            raise ImageFormatError(f"{self.uri}: sample type {self.dtype} is not a real number type; convert the image")
        count = 3 if self._palette is not None else len(self._colors)
        rgb = count == 3 and (self._palette is not None or page.photometric == jpeg.RGB or _decodes_to_rgb(page))
        self.bands = RGB if rgb else ("gray",) if count == 1 else tuple(f"band{i + 1}" for i in range(count))
        self.nodata = [_nodata(page)] * len(self._colors)
        self.spacing = _ome_spacing(self._pages.ome_xml) if self._pages.ome_xml else _tag_spacing(self._pages)

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        samples, valid = self._pages.read(box, level)
        for index in self._alpha:
            valid = both(valid, np.asarray(samples[..., index] > 0))
        pixels = np.ascontiguousarray(samples[..., self._colors])
        valid = both(valid, valid_samples(pixels, self.nodata))
        if self._palette is not None:
            pixels = self._palette[pixels[..., 0]]
        else:
            pixels = pixels.astype(np.uint8) * np.uint8(255) if self._bool else pixels.astype(self.dtype, copy=False)
            if self._black is not None:
                pixels = self._black - pixels
        return pixels, valid

    def close(self) -> None:
        self._pages.close()


def _decodes_to_rgb(page: Any) -> bool:
    """Say whether a page's codec turns YCbCr into RGB: only JPEG's does, where the samples are interleaved."""
    return page.photometric == jpeg.YCBCR and page.compression in _JPEG_COMPRESSIONS and page.planarconfig == 1


def _exif_orientation(stored: bytes) -> int:
    # Not `getexif` of a photo, which decodes all of a PNG.
    exif = Image.Exif()
    try:
        exif.load(stored)
        return _orientation(exif.get(_ORIENTATION))
    except (SyntaxError, KeyError, struct.error, *DECODE_ERRORS):
        return 1  # what cannot be read turns a photo in no viewer


def _orientation(value: Any) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _nodata(page: Any) -> float | None:
    tag = page.tags.get(GDAL_NODATA)
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def _ome_spacing(xml: str) -> Spacing | None:
    """Return PhysicalSizeY and PhysicalSizeX of the first image; OME's default unit is the micrometre."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if pixels is None:
        return None
    sizes = []
    for axis in "YX":
        size, unit = _attribute(pixels[0], f"PhysicalSize{axis}"), _attribute(pixels[0], f"PhysicalSize{axis}Unit")
        factor = _MICROMETRES.get(unit or "um")
        try:
            sizes.append(float(size or "") * (factor or math.nan))
        except ValueError:
            return None
    return Spacing(sizes[0], sizes[1], "um") if all(0 < size < math.inf for size in sizes) else None


def _attribute(tag: str, name: str) -> str | None:
    """Return the value of an attribute of an XML tag, in which characters may be written as numbers."""
    found = re.search(rf"""\s{name}\s*=\s*("[^"]*"|'[^']*')""", tag)
    return html.unescape(found[1][1:-1]) if found else None


def _tag_spacing(pages: TiffPages) -> Spacing | None:
    """Return the spacing of TIFF's resolution tags where they are a measurement: ImageJ's unit, or finer than print."""
    page = pages.page
    try:
        (nx, dx), (ny, dy) = page.tags["XResolution"].value, page.tags["YResolution"].value
        y, x = dy / ny, dx / nx
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    unit = str(pages.imagej.get("unit", "")).replace("\\u00B5", "µ")
    if unit in _MICROMETRES:
        return Spacing(y * _MICROMETRES[unit], x * _MICROMETRES[unit], "um") if min(y, x) > 0 else None
    resolution_unit = page.tags.get("ResolutionUnit")
    micrometres = {_PER_INCH: 25_400.0, _PER_CENTIMETRE: 10_000.0}.get(
        int(resolution_unit.value) if resolution_unit is not None else _PER_INCH
    )
    if micrometres is None or not 0 < max(y, x) * micrometres < FINEST_PRINT_SPACING_UM:
        return None
    return Spacing(y * micrometres, x * micrometres, "um")
