"""Turns what a user names (files, folders, globs, manifests) into images with a folder each; opens no image."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from unetpp.errors import ImageNotFoundError, OutputError
from unetpp.io.bands import SUFFIX as BAND_LIST
from unetpp.io.bands import is_band_list, list_items
from unetpp.io.dicom import slides_in
from unetpp.io.remote import check_uri, is_remote, list_prefix
from unetpp.io.video import frame_count, is_video
from unetpp_workflows.manifest import Entry, is_manifest, read_manifest

SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .svslide .bif .czi .zarr .png .jpg .jpeg .vrt .jp2".split()  # noqa: SIM905
)
"""Files that a folder contributes; a file named by itself is always tried, whatever its suffix."""
LISTS = (".mosaic.toml", BAND_LIST)
_ZARR = frozenset({"zarr.json", ".zgroup", ".zarray"})
RESERVED = frozenset({"mlflow", "logs", "nightly"})
JOB = "job.json"


@dataclass(frozen=True, slots=True)
class Source:
    """One image to segment and the folder, directly below the output folder, that takes its results.

    `spacing`, `mask` and `region` are its own, from a manifest; they win over the call's.
    """

    uri: str
    folder: Path
    spacing: str | None = None
    mask: str | None = None
    region: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name


def expand(inputs: Iterable[str | Path]) -> list[Entry]:
    """Return images: files as given, folders and globs in order of name, manifests in theirs; each image once.

    Raises:
        ImageNotFoundError: A folder, prefix or glob holds no image. A missing file is left for its reader to report.
        ImageFormatError: A URI has an unknown scheme, or a password or query in it.
        RemoteError: A prefix cannot be listed.
        DataError: A manifest cannot be read, or the STAC items of a band list.
    """
    found: dict[str, Entry] = {}
    for item in map(str, inputs):
        if is_remote(item):
            check_uri(item)
        entries = read_manifest(item) if is_manifest(item) else [Entry(uri) for uri in _expand_one(item)]
        entries = [image for entry in entries for image in _images_in(entry)]
        for entry in entries:
            for uri in filter(None, (entry.uri, entry.mask)):
                if is_remote(uri):
                    check_uri(uri)
            found.setdefault(entry.uri, entry)
    return list(found.values())


def _images_in(entry: Entry) -> list[Entry]:
    """Return the frames of a video file or the items of a band list, each an image of its own name; others as is."""
    path = Path(entry.uri).expanduser()
    if is_remote(entry.uri) or not (is_video(path) or is_band_list(path)) or not path.is_file():
        return [entry]
    if is_video(path):
        name = entry.name or path.stem
        return [replace(entry, uri=f"{path}#{i}", name=f"{name}_{i:06d}") for i in range(frame_count(path))]
    items = list_items(path) if is_band_list(path) else None
    if items is None:
        return [entry]
    return [replace(entry, uri=f"{path}#{item}", name="_".join(filter(None, (entry.name, item)))) for item in items]


def _expand_one(item: str) -> list[str]:
    if is_remote(item):
        return _expand_prefix(item) if item.endswith("/") else [item]
    path = Path(item.removeprefix("file://")).expanduser()
    if path.is_dir() and not _is_image(path):
        images = sorted(_images_below(path), key=lambda image: image.parts)
        if not images:
            raise ImageNotFoundError(
                f"{item}: no image in this folder; known suffixes are {' '.join(sorted(SUFFIXES))}"
            )
        return [str(image) for image in images]
    if not path.exists() and glob.has_magic(item):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob refuses absolute patterns)
        images = [Path(match) for match in matches if Path(match).is_file() or _is_zarr(Path(match))]
        if not images:
            raise ImageNotFoundError(f"{item}: nothing matches this pattern; quote it and check the folder")
        return [str(image) for image in images]
    return [str(path)]


def _expand_prefix(uri: str) -> list[str]:
    """Return the images below a prefix of a bucket, which ends in a slash: an archive, or one Zarr image."""
    images = sorted(_remote_images_below(uri.rstrip("/")))
    if not images:
        raise ImageNotFoundError(f"{uri}: no image below this prefix; known suffixes are {' '.join(sorted(SUFFIXES))}")
    return images


def _remote_images_below(uri: str) -> list[str]:
    found = list_prefix(uri)
    names = {item.rpartition("/")[2] for item in found.objects}
    if names & _ZARR:
        return [uri]
    if names & {JOB, "mlflow.db"}:
        return []
    images = [item for item in found.objects if Path(item).suffix.lower() in SUFFIXES]
    for folder in found.folders:
        if not folder.rpartition("/")[2].startswith("."):
            images += _remote_images_below(folder)
    return [item for item in images if not item.rpartition("/")[2].startswith(".")]


def _images_below(folder: Path) -> list[Path]:
    images = slides_in(folder)
    with os.scandir(folder) as entries:  # it knows which are folders: no question per image
        children = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in children:
        child = folder / entry.name
        if not entry.is_dir():
            if child.suffix.lower() in SUFFIXES or child.name.lower().endswith(LISTS):
                images.append(child)
        elif _is_image(child):
            images.append(child)
        # Results and an MLflow store may lie among the images, with pictures in them.
        elif not (child / JOB).exists() and not (child / "mlflow.db").exists():
            images += _images_below(child)
    return images


def _is_image(folder: Path) -> bool:
    """Say whether a folder is one image: Zarr, or the DICOM files of one slide, which is then named by the folder."""
    return _is_zarr(folder) or len(slides_in(folder)) == 1


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in _ZARR)


def assign_folders(entries: Iterable[Entry], output: Path) -> list[Source]:
    """Give each image its folder: its name or stem, with a hash of its URI where two images share it.

    The choice does not depend on the order of the images, and a folder that another image took in an earlier call
    stays that image's.

    Raises:
        OutputError: A folder of this name is a link that leads out of the output folder.
    """
    entries = list(entries)
    stems = {entry.uri: safe_name(entry.name or entry.uri, is_name=bool(entry.name)) for entry in entries}
    counts: dict[str, int] = {}
    for stem in stems.values():
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    # What is there is listed once: asking for each of a million folders costs minutes, from network storage hours.
    there, root = _names_in(output), output.resolve()
    sources = []
    for entry in entries:
        uri, stem = entry.uri, stems[entry.uri]
        key, folder = stem.casefold(), output / stem
        held = owner(folder) if key in there else None
        if held is None or held != identity(uri):
            clash = counts[key] > 1 or key in RESERVED or held is not None
            if clash or there:
                hashed = output / f"{stem}-{_uri_hash(uri)}"
                folder = hashed if clash or (hashed.name.casefold() in there and hashed.is_dir()) else folder
        if folder.name.casefold() in there and folder.resolve().parent != root:
            raise OutputError(f"{folder} is a link out of the output folder; remove it or choose another --output")
        sources.append(Source(uri, folder, entry.spacing, entry.mask, entry.region))
    return sources


def _names_in(folder: Path) -> frozenset[str]:
    """Return the names in a folder as file systems compare them that ignore case; empty where there is none."""
    try:
        return frozenset(path.name.casefold() for path in folder.iterdir())
    except FileNotFoundError:
        return frozenset()


def identity(uri: str) -> str:
    """Return the URI that stands for an image wherever a call is made from: absolute for files."""
    return uri if "://" in uri else str(Path(uri).absolute())


def owner(folder: Path) -> str | None:
    """Return the identity of the image whose results a folder holds, None where it holds none."""
    try:
        uri = json.loads((folder / JOB).read_text(encoding="utf-8"))["uri"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity(str(uri))


def safe_name(uri: str, *, is_name: bool = False) -> str:
    """Return a URI's stem, or a whole name, reduced to letters, digits, `_`, `-` and inner dots: one folder name."""
    if is_name:
        return re.sub(r"[^\w.-]+", "_", uri).strip("._")[:80] or "image"
    path = uri.split("://", 1)[-1].split("?", 1)[0].rstrip("/\\")
    last = re.split(r"[/\\]", path)[-1]
    stem = re.sub(r"(\.ome)?\.(zarr|tiff?)$|\.(mosaic|bands)\.toml$", "", last, flags=re.IGNORECASE)
    stem = Path(stem).stem if stem == last else stem
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[:80] or "image"


def _uri_hash(uri: str) -> str:
    return hashlib.sha256(identity(uri).encode()).hexdigest()[:8]
