"""Opens remote images in ranges of bytes, or as a staged copy; knows which formats allow which, and decodes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from unetpp.errors import ImageFormatError
from unetpp.io.base import SIDECARS, ZARR_DOCUMENTS, Raster
from unetpp.io.remote import RemoteObject, find_object, list_versions, open_object, zarr_store
from unetpp.io.tiff import AUXILIARY, MASK, PLACES, TIFF_MAGIC, read_header

if TYPE_CHECKING:
    from unetpp.io.reader import ReaderBase

_IN_SEVERAL_FILES = (".mrxs", ".vms", ".vmu", ".dcm", ".vrt", ".toml")


def open_remote(uri: str, open_local: Callable[[Path], Raster]) -> Raster:
    """Open a remote image; `open_local` opens a staged copy. Errors as `unetpp.io.open_raster`'s."""
    uri = uri.rstrip("/")
    if uri.lower().endswith(".zarr") or _zarr_documents(uri):
        from unetpp.io.zarr import ZarrRaster

        return ZarrRaster(uri, zarr_store(uri))
    image = open_object(uri)
    if PurePosixPath(uri).suffix.lower() in _IN_SEVERAL_FILES:
        raise ImageFormatError(f"{uri}: an image of several files is not read remotely; copy all of them here first")
    if image.read(0, 4) in TIFF_MAGIC:
        found = _open_tiff(image)
        if found is not None:
            return found
    return _open_staged(image, open_local)


def versions(uri: str) -> list[tuple[str, int, str]]:
    """Return name, size and version of the objects that make up an image, as far as its fingerprint covers them."""
    uri = uri.rstrip("/")
    documents = [(_name(part.uri), part.size, part.version) for part in _zarr_documents(uri)]
    if not documents:
        image = open_object(uri)
        beside = _sidecars(image, placed=False) if image.read(0, 4) in TIFF_MAGIC else {}
        return [(name, part.size, part.version) for name, part in ({_name(uri): image} | beside).items()]
    if uri.startswith("http"):
        return documents
    return documents + list_versions(uri)


def _open_tiff(image: RemoteObject) -> Raster | None:
    """Return the reader of a TIFF that is read in ranges, None where OpenSlide needs the whole file."""
    header, name = read_header(image), _name(image.uri)
    placed = header.placed
    parts = {name: image} | _sidecars(image, placed)
    auxiliary = parts.get(name + AUXILIARY)
    if auxiliary is not None:
        text = auxiliary.read(0, auxiliary.size)
        placed = placed or any(place in text for place in PLACES)
    if not placed and (world := [name for name in parts if PurePosixPath(name).suffix in _worlds(image.uri)]):
        # GDAL reads text line by line, which rasterio's Python files cannot serve: the place would be lost silently.
        raise ImageFormatError(
            f"{image.uri}: placed by {world[0]}, which is not read remotely; copy both here, or put the georeference "
            "into the TIFF (gdal_translate)"
        )
    if placed or header.masked or name + MASK in parts:
        from unetpp.io.geotiff import SceneRaster

        return SceneRaster(parts)
    if header.for_openslide:
        from unetpp.io.slide_ranges import open_in_ranges

        return open_in_ranges(image)
    from unetpp.io.plain import TiffRaster

    return TiffRaster(image)


def _open_staged(image: RemoteObject, open_local: Callable[[Path], Raster]) -> Raster:
    from unetpp.io.staging import stage

    copy = stage(image)
    raster: ReaderBase = open_local(copy.path)  # type: ignore[assignment]  # every reader of ours is one
    raster.uri, raster.staged = image.uri, copy
    return raster


def _sidecars(image: RemoteObject, placed: bool) -> dict[str, RemoteObject]:
    """Return the objects beside a TIFF that belong to it, by name; world files count where the TIFF has no place."""
    uris = [image.uri + ending for ending in SIDECARS]
    if not placed:
        uris += [image.uri.removesuffix(PurePosixPath(image.uri).suffix) + ending for ending in _worlds(image.uri)]
    found = ((uri, find_object(uri)) for uri in uris)
    return {_name(uri): part for uri, part in found if part is not None}


def _worlds(uri: str) -> list[str]:
    """Return the suffixes of world files, in capitals too where the image's is: each is a request more."""
    from unetpp.io.georeference import world_files

    suffix = PurePosixPath(uri).suffix
    small = world_files(suffix.lower())
    return [*map(str.upper, small), *small] if suffix.isupper() else small


def _zarr_documents(uri: str) -> list[RemoteObject]:
    """Return the metadata documents of a Zarr group or array, none for a name that is a file's."""
    if PurePosixPath(uri).suffix and not uri.lower().endswith(".zarr"):
        return []
    found = (find_object(f"{uri}/{name}") for name in ZARR_DOCUMENTS)
    return [part for part in found if part is not None]


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]
