"""Opens images of any supported format behind one protocol; knows nothing about models or outputs."""

from __future__ import annotations

from pathlib import Path

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, UnetppError
from unetpp.io.base import ZARR_DOCUMENTS, Level, Raster, Window

__all__ = ["Level", "Raster", "Window", "open_raster"]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WORLD_FILES = (".tfw", ".tifw", ".tiffw", ".wld")
_MIRAX = ".mrxs"


def open_raster(uri: str | Path) -> Raster:
    """Open an image of this machine's file system with the reader its content asks for.

    A folder is Zarr. A file that OpenSlide knows by its vendor is a slide. A TIFF with a georeference, or a world file
    beside it, is a scene; a tiled 8-bit RGB TIFF without one is a slide (OpenSlide's "generic-tiff"); all else plain.
    Slides never go to a TIFF reader by page: to GDAL their label photo is an overview. A .mosaic.toml is the images it
    lists, read as one (`unetpp.io.mosaic`).

    Raises `ImageNotFoundError`, `ImageFormatError`, `CorruptImageError` or `ImageTooLargeError`, each one line.
    """
    path = _local_path(uri)
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path, _magic(path))
    except (UnetppError, MemoryError):
        raise
    except Exception as error:
        # Damaged headers make the format libraries fail in any way at all.
        from unetpp.io.reader import first_line

        raise CorruptImageError(f"{path}: its header is damaged ({first_line(error)}); copy it again") from error


def _local_path(uri: str | Path) -> Path:
    text = str(uri)
    if "://" in text and not text.startswith("file://"):
        raise ImageFormatError(f"{text}: only files of this machine are read; copy the image here first")
    path = Path(text.removeprefix("file://"))
    if not path.exists():
        raise ImageNotFoundError(f"{path}: no such file or folder; check the path")
    return path


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CorruptImageError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not magic:
        raise CorruptImageError(f"{path}: the file is empty; copy it again")
    return magic


def _open_folder(path: Path) -> Raster:
    from unetpp.io.zarr import ZarrRaster

    if not any((path / name).is_file() for name in ZARR_DOCUMENTS):
        raise ImageFormatError(f"{path}: a folder without Zarr metadata; give an image file or an OME-Zarr folder")
    return ZarrRaster(path)


def _open_file(path: Path, magic: bytes) -> Raster:
    import openslide

    from unetpp.io.mosaic import MosaicRaster, is_mosaic
    from unetpp.io.openslide import SlideRaster
    from unetpp.io.plain import PhotoRaster, TiffRaster

    if is_mosaic(path):
        return MosaicRaster(path)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is not None and vendor != "generic-tiff":
        return SlideRaster(path)
    if path.suffix.lower() == _MIRAX:
        # The .mrxs file itself is a JPEG: a photo of the slide with its label.
        raise ImageFormatError(f"{path}: MIRAX slide without its data folder {path.stem}/; copy that beside it")
    if magic not in _TIFF_MAGIC:
        return PhotoRaster(path)
    if _is_placed(path):
        from unetpp.io.geotiff import SceneRaster

        return SceneRaster(path)
    if vendor is not None and _is_rgb8(path):
        return SlideRaster(path)
    return TiffRaster(path)


def _is_placed(path: Path) -> bool:
    from unetpp.io.tiff import GEO_TAGS, page_tags

    return bool(GEO_TAGS & page_tags(path).keys()) or any(path.with_suffix(x).exists() for x in _WORLD_FILES)


def _is_rgb8(path: Path) -> bool:
    """Tell whether OpenSlide may read this plain TIFF: it would turn other sample types into 8-bit RGB silently."""
    from unetpp.io.tiff import page_tags

    tags = page_tags(path)
    description = str(tags.get(_IMAGE_DESCRIPTION, ""))
    if "<OME" in description or description.startswith("ImageJ="):
        return False
    bits = tags.get(_BITS_PER_SAMPLE, 1)
    return tags.get(_SAMPLES_PER_PIXEL) == 3 and set(bits if isinstance(bits, tuple) else (bits,)) == {8}


_BITS_PER_SAMPLE, _IMAGE_DESCRIPTION, _SAMPLES_PER_PIXEL = 258, 270, 277
