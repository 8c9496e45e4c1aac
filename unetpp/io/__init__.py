"""Opens images of any supported format behind one protocol; knows nothing about models or outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, UnetppError
from unetpp.io.bands import BandsRaster, is_band_list, split_item
from unetpp.io.base import JP2, VRT, ZARR_DOCUMENTS, Level, Raster, Window, existing
from unetpp.io.remote import is_remote, local_name
from unetpp.io.video import FrameRaster, split_frame

__all__ = ["Level", "Raster", "Window", "open_raster"]

_MIRAX = ".mrxs"
_opening: ContextVar[tuple[Path, ...]] = ContextVar("opening", default=())
"""The mosaics and band lists that this thread is opening, the outermost first."""


def open_raster(uri: str | Path) -> Raster:
    """Open a local or remote image with the reader its content asks for.

    A folder is Zarr, or the DICOM files of one slide. A file that OpenSlide knows by its vendor is a slide. A TIFF with
    a georeference, in itself or in a file beside it, is a scene, and GDAL also reads those with a transparency mask; a
    tiled 8-bit RGB TIFF without these is a slide (OpenSlide's "generic-tiff") if OpenSlide knows its compression and it
    has no nodata; all else plain. Slides never go to a TIFF reader by page: to GDAL their label photo is an overview.
    A .mosaic.toml is the images it lists, read as one
    (`unetpp.io.mosaic`), a .bands.toml the bands it lists (`unetpp.io.bands`); a .vrt or .jp2 is a scene.

    FILE#NUMBER is a frame of a video, counted from 0 (`unetpp.io.video`); NAME.bands.toml#ID the image of a STAC item.

    At s3://, gs://, http:// and https:// the same choice is made from a few ranges of bytes. Scenes, Zarr, slides whose
    own tiles are what OpenSlide shows and other TIFFs that are not 8-bit RGB are read in ranges; all else is staged
    (`unetpp.io.staging`).

    Raises `ImageNotFoundError`, `ImageFormatError`, `CorruptImageError`, `ImageTooLargeError` or, of remote images,
    `RemoteError`, each one line.
    """
    name = local_name(str(uri))
    frame, item = (None, None) if is_remote(uri) else (split_frame(name), split_item(name))
    if frame is not None:
        return FrameRaster(_local_path(frame[0]), frame[1])
    if item is not None:
        with _once(item[0]):
            return BandsRaster(_local_path(item[0]), item[1])
    path = uri if is_remote(uri) else _local_path(name)
    try:
        if isinstance(path, str):
            from unetpp.io.remote_image import open_remote

            return open_remote(path, open_raster)
        return _open_folder(path) if path.is_dir() else _open_file(path, _magic(path))
    except (UnetppError, MemoryError):
        raise
    except Exception as error:
        # Damaged headers make the format libraries fail in any way at all.
        from unetpp.io.reader import first_line

        raise CorruptImageError(f"{path}: its header is damaged ({first_line(error)}); copy it again") from error


def _local_path(uri: str | Path) -> Path:
    path = Path(uri)
    if not path.exists():
        raise ImageNotFoundError(f"{path}: no such file or folder; check the path")
    if not (path.is_file() or path.is_dir()):  # a pipe would be waited for without end
        raise ImageFormatError(f"{path}: a pipe, socket or device; give a file or folder")
    return path


@contextmanager
def _once(path: Path) -> Iterator[None]:
    """Refuse a mosaic or band list that is being opened already: it would open itself for ever."""
    above = _opening.get()
    if path.resolve() in above:
        raise ImageFormatError(f"{path}: names itself, by way of {above[-1].name}; list images")
    token = _opening.set((*above, path.resolve()))
    try:
        yield
    finally:
        _opening.reset(token)


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
    from unetpp.io.dicom import slides_in
    from unetpp.io.openslide import SlideRaster
    from unetpp.io.zarr import ZarrRaster

    if any((path / name).is_file() for name in ZARR_DOCUMENTS):
        return ZarrRaster(path)
    slides = slides_in(path)
    if len(slides) > 1:
        raise ImageFormatError(
            f"{path}: holds {len(slides)} DICOM slides; give a file of one, such as {slides[0].name}"
        )
    if not slides:
        raise ImageFormatError(f"{path}: a folder without Zarr metadata; give an image file or an OME-Zarr folder")
    slide = SlideRaster(slides[0])
    slide.uri = str(path)
    return slide


def _open_file(path: Path, magic: bytes) -> Raster:
    import openslide

    from unetpp.io.georeference import is_placed_beside
    from unetpp.io.mosaic import MosaicRaster, is_mosaic
    from unetpp.io.openslide import SlideRaster
    from unetpp.io.plain import PhotoRaster, TiffRaster
    from unetpp.io.tiff import MASK, TIFF_MAGIC, read_header

    if is_mosaic(path) or is_band_list(path):
        with _once(path):
            return MosaicRaster(path) if is_mosaic(path) else BandsRaster(path)
    if path.suffix.lower() in (JP2, VRT):
        return _open_scene(path)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is not None and vendor != "generic-tiff":
        return SlideRaster(path)
    if path.suffix.lower() == _MIRAX:
        # The .mrxs file itself is a JPEG: a photo of the slide with its label.
        raise ImageFormatError(f"{path}: MIRAX slide without its data folder {path.stem}/; copy that beside it")
    if magic not in TIFF_MAGIC:
        return PhotoRaster(path)
    header = read_header(path)
    if header.placed or header.masked or is_placed_beside(path) or existing([path.with_name(path.name + MASK)]):
        return _open_scene(path)
    if vendor is not None and header.for_openslide:
        return SlideRaster(path)
    return TiffRaster(path)


def _open_scene(path: Path) -> Raster:
    from unetpp.io.geotiff import SceneRaster  # GDAL takes a third of a second to import, and slides do without

    return SceneRaster(path)
