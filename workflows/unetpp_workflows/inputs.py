"""Turns what a user names (files, folders, globs, manifests) into images with a folder each; opens no image."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from unetpp.errors import DataError, ImageNotFoundError, OutputError, UnetppError
from unetpp.io.bands import SUFFIX as BAND_LIST
from unetpp.io.bands import is_band_list, list_items
from unetpp.io.dicom import slides_in
from unetpp.io.remote import check_uri, is_remote, list_prefix, local_name, local_path, shown
from unetpp.io.video import frame_count, is_video
from unetpp_workflows.manifest import Entry, is_manifest, read_manifest
from unetpp_workflows.patterns import matches

SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .svslide .bif .czi .zarr .png .jpg .jpeg .vrt .jp2".split()  # noqa: SIM905
)
"""Files that a folder contributes; a file named by itself is always tried, whatever its suffix."""
LISTS = (".mosaic.toml", BAND_LIST)
RESERVED = frozenset({"mlflow", "logs", "nightly", "summary.csv", "summary.parquet", "report.html", "reviews.jsonl"})
JOB = "job.json"
_ZARR = frozenset({"zarr.json", ".zgroup", ".zarray"})
_OURS = frozenset({JOB, "mlflow.db"})
"""What lies in a folder that holds one image, and in one that holds results or an MLflow store."""
_NAME_BYTES = 230
"""File systems take 255, with a hash behind the name and what a folder is called while it is deleted."""


@dataclass(frozen=True, slots=True)
class Source:
    """One image to segment and the folder, directly below the output folder, that takes its results.

    `uri` is absolute. `spacing`, `mask` and `region` are its own, from a manifest; they win over the call's.
    """

    uri: str
    folder: Path
    spacing: str | None = None
    mask: str | None = None
    region: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name


def expand(inputs: Iterable[str | Path]) -> tuple[list[Entry], dict[str, str]]:
    """Return images, and why inputs, or folders and files in them, give none: name -> one line.

    Images are files as given, folders and globs in order of name, manifests in theirs; each image once, however its
    path is written. A missing file is left for its reader to report.
    """
    found: dict[str, Entry] = {}
    faults: dict[str, str] = {}
    for item in map(str, inputs):
        try:
            _add(found, _entries(item, faults))
        except (UnetppError, OSError) as error:
            _note(faults, item, error)
    return list(found.values()), faults


def _add(found: dict[str, Entry], entries: Iterable[Entry]) -> None:
    """Add all images under their identities; raises `DataError`, and adds none, where two differ on one image."""
    new: dict[str, Entry] = {}
    for entry in entries:
        key = identity(entry.uri)
        before = found.get(key) or new.setdefault(key, entry)
        if before is not entry and replace(before, uri=entry.uri) != entry:
            names = " and ".join(f"as {name!r}" if name else "without a name" for name in (before.name, entry.name))
            raise DataError(
                f"{shown(entry.uri)} is listed twice, {names}, with different settings; an image has one result: keep "
                "one row, or give the other to a run with another --output"
            )
    found |= new


def _entries(item: str, faults: dict[str, str]) -> Iterator[Entry]:
    """Yield the images that an input names; what is wrong with one of several is noted, with the input itself raised.

    Raises:
        ImageNotFoundError: A folder, prefix or glob holds no image.
        ImageFormatError: A URI has an unknown scheme, or a password or query in it.
        RemoteError: A prefix cannot be listed.
        DataError: A manifest cannot be read.
    """
    if not item:
        raise ImageNotFoundError("an input without a name; give an image, a folder or . for this one")
    if is_remote(item):
        check_uri(item)
    named = read_manifest(item) if is_manifest(item) else [Entry(uri) for uri in _expand_one(item, faults)]
    for entry in named:
        for uri in filter(None, (entry.uri, entry.mask)):
            if is_remote(uri):
                check_uri(uri)
        wrong = _misnamed(identity(entry.uri))
        if wrong is not None:
            _note(faults, wrong, ImageNotFoundError(f"{wrong}: the name is not UTF-8; rename it"))
            continue
        try:
            yield from _images_in(entry)
        except (UnetppError, OSError) as error:
            _note(faults, entry.uri, error)


def _note(faults: dict[str, str], name: str, error: UnetppError | OSError) -> None:
    """Write down in one line why an input, or a folder or file in it, gives no image."""
    why = str(error)
    if not isinstance(error, UnetppError):
        reason = str(error.strerror or error)
        if error.filename not in (None, name):  # the folder is at fault, for something in it
            reason = f"{error.filename}: {reason}"
        why = f"{name}: cannot be read: {reason}; make it readable for this user, or move it away"
    faults[_printable(shown(name))] = _printable(" ".join(why.split()))


def _printable(text: str) -> str:
    """Return a text with the bytes of names that are not UTF-8 spelled out: no file and no terminal takes them."""
    return text.encode(errors="backslashreplace").decode()


def _misnamed(path: str) -> str | None:
    """Return the first folder or file on a path whose name is not UTF-8, None where there is none."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        return path[: error.start] + path[error.start :].partition("/")[0]
    return None


def _images_in(entry: Entry) -> list[Entry]:
    """Return the frames of a video file or the items of a band list, each an image of its own name; others as is."""
    path = local_path(entry.uri)
    if is_remote(entry.uri) or not (is_video(path) or is_band_list(path)) or not path.is_file():
        return [entry]
    if is_video(path):
        name = entry.name or path.stem
        return [replace(entry, uri=f"{path}#{i}", name=f"{name}_{i:06d}") for i in range(frame_count(path))]
    items = list_items(path) if is_band_list(path) else None
    if items is None:
        return [entry]
    return [replace(entry, uri=f"{path}#{item}", name="_".join(filter(None, (entry.name, item)))) for item in items]


def _expand_one(item: str, faults: dict[str, str]) -> list[str]:
    if is_remote(item):
        return _expand_prefix(item) if item.endswith("/") else [item]
    path = local_path(item)
    if path.is_dir() and not _is_zarr(path) and not _is_slide(_slides_in(path, faults), _names_of(path, faults)):
        images = sorted(_images_below(path, faults), key=lambda image: image.parts)
        if not images:
            raise ImageNotFoundError(
                f"{item}: no image in this folder; known suffixes are {' '.join(sorted(SUFFIXES))}"
            )
        return [str(image) for image in images]
    if not path.exists() and glob.has_magic(item):
        images = _matches(str(path), faults)
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
    if names & _OURS:
        return []
    images = [item for item in found.objects if Path(item).suffix.lower() in SUFFIXES]
    for folder in found.folders:
        if not folder.rpartition("/")[2].startswith("."):
            images += _remote_images_below(folder)
    return [item for item in images if not item.rpartition("/")[2].startswith(".")]


def _matches(pattern: str, faults: dict[str, str]) -> list[Path]:
    """Return the images that match, in order of name; each once, though `**` follows a link to a folder above it."""
    real = cache(os.path.realpath)
    places: dict[tuple[str, str], str] = {}
    for match in sorted(matches(pattern, partial(_note, faults)), key=lambda match: (len(match), match)):
        folder, name = os.path.split(match.rstrip("/"))
        places.setdefault((real(folder), name), match)
    images = []
    for path in map(Path, sorted(places.values())):
        try:
            if path.is_file() or _is_zarr(path):
                images.append(path)
        except OSError as error:
            _note(faults, str(path), error)
    return images


def _images_below(top: Path, faults: dict[str, str]) -> list[Path]:
    """Return the images in a folder and below it, in no order; each folder once, whatever links lead to it."""
    images: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [top], list[Path]()
    while folders or links:
        if not folders:  # links come last: a folder that lies here itself is named by its own path
            folders, links = sorted(links, reverse=True), []
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                children = list(entries)
            facts = folder.stat()
        except OSError as error:
            _note(faults, str(folder), error)
            continue
        names, slides = {entry.name for entry in children}, _slides_in(folder, faults)
        if folder != top and (names & _ZARR or _is_slide(slides, names)):
            images.append(folder)
        # Results and an MLflow store may lie among the images, with pictures in them.
        elif (folder == top or not names & _OURS) and (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            images += slides
            for entry in children:
                _sort(entry, folder / entry.name, images, links if entry.is_symlink() else folders, faults)
    return images


def _sort(entry: os.DirEntry[str], path: Path, images: list[Path], folders: list[Path], faults: dict[str, str]) -> None:
    """Add an entry of a folder to the images or the folders, if it is one of them."""
    if entry.name.startswith("."):
        return
    try:
        if entry.is_dir():  # the listing knows: no question per image
            folders.append(path)
        elif path.suffix.lower() in SUFFIXES or path.name.lower().endswith(LISTS):
            images.append(path)
    except OSError as error:
        _note(faults, str(path), error)


def _slides_in(folder: Path, faults: dict[str, str]) -> list[Path]:
    try:
        return slides_in(folder)
    except OSError as error:
        _note(faults, str(folder), error)
        return []


def _is_slide(slides: Sequence[Path], names: Iterable[str]) -> bool:
    """Say whether a folder is one image named by the folder, as Zarr is: the DICOM files of one slide, and no other."""
    return len(slides) == 1 and not any(Path(name).suffix.lower() in SUFFIXES for name in names)


def _names_of(folder: Path, faults: dict[str, str]) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names are wanted, not paths)
    except OSError as error:
        _note(faults, str(folder), error)
        return []


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in _ZARR)


def assign_folders(entries: Iterable[Entry], output: Path) -> list[Source]:
    """Give each image a folder of its own: its name or stem, with a hash of its URI where two images share it.

    The choice does not depend on the order of the images, and a folder that another image took in an earlier call
    stays that image's. One that holds the image itself, or other things that are not ours, is left alone: images may
    lie in the output folder, too.

    Raises:
        OutputError: A folder of this name is a link that leads out of the output folder; two images have one folder;
            the output folder lies inside an image.
    """
    entries = list(entries)
    stems = {entry.uri: safe_name(entry.name or entry.uri, is_name=bool(entry.name)) for entry in entries}
    counts: dict[str, int] = {}
    for stem in stems.values():
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    # What is there is listed once: asking for each of a million folders costs minutes, from network storage hours.
    there, root, home = _names_in(output), output.resolve(), identity(str(output))
    sources: dict[str, Source] = {}
    for entry in entries:
        uri, stem = _absolute(entry.uri), stems[entry.uri]
        key, folder = stem.casefold(), output / stem
        held, image = owner(folder) if key in there else None, identity(uri)
        inside = f"{image}/".startswith(f"{home}/{stem}/")
        if held is None or held != image or inside:
            foreign = inside or (key in there and _is_foreign(folder))
            clash = counts[key] > 1 or key in RESERVED or held is not None or foreign
            if clash or there:
                hashed = output / f"{stem}-{_uri_hash(uri)}"
                folder = hashed if clash or (hashed.name.casefold() in there and hashed.is_dir()) else folder
        if folder.name.casefold() in there and folder.resolve().parent != root:
            raise OutputError(f"{folder} is a link out of the output folder; remove it or choose another --output")
        if f"{home}/".startswith(f"{image}/") and _is_zarr(Path(uri)):
            raise OutputError(f"{output} lies inside the image {uri}, which it would change; choose another --output")
        source = Source(uri, folder, entry.spacing, entry.mask, entry.region)
        other = sources.setdefault(folder.name.casefold(), source)
        if other is not source:  # a short hash, or a name that looks like one with a hash
            raise OutputError(f"{other.uri} and {uri} would both be written to {folder}; use two --output")
    return list(sources.values())


def _is_foreign(folder: Path) -> bool:
    """Say whether there is something of this name that no call of ours has begun in, and is not empty.

    Whoever prepares an image locks its folder first; one that could not be prepared leaves a record alone.
    """
    try:
        names = frozenset(os.listdir(folder))  # noqa: PTH208 (names are wanted, not paths)
    except FileNotFoundError:
        return False  # it differs in case, and here that is another name
    except OSError:
        return True  # a file, or a folder that may not be looked into
    return bool(names) and not names & {JOB, ".lock"} and not _is_record(folder / "record.json")


def _is_record(file: Path) -> bool:
    """Say whether a file is a record of ours, of any version; others have files of that name, too."""
    try:
        return bool({"name", "status", "format"} <= json.loads(file.read_bytes()).keys())
    except (OSError, ValueError, AttributeError):
        return False


def _names_in(folder: Path) -> frozenset[str]:
    """Return the names in a folder as file systems compare them that ignore case; empty where there is none."""
    try:
        return frozenset(path.name.casefold() for path in folder.iterdir())
    except FileNotFoundError:
        return frozenset()


def identity(uri: str) -> str:
    """Return the URI that stands for an image wherever a call is made from and however its path is written.

    Of files it is the absolute path without `.` and `..`; links keep their names.
    """
    if is_remote(uri):
        return uri
    path = _absolute(uri)
    plain = os.path.normpath(path)
    # Behind a link to a folder, `..` is not the folder that holds the link.
    if ".." in path and os.path.realpath(plain) != (real := os.path.realpath(path)):
        return real
    return plain


def _absolute(uri: str) -> str:
    """Return a URI that opens the same image from every folder: a result is looked at from another one."""
    if is_remote(uri):
        return uri
    path = local_name(uri)
    # As text: `Path` takes several times as long, and an archive may have a million.
    return path if path.startswith("/") else f"{Path.cwd()}/{path}"


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
        return _folder_name(uri)
    path = uri.split("://", 1)[-1].split("?", 1)[0].rstrip("/\\")
    last = re.split(r"[/\\]", path)[-1]
    stem = re.sub(r"(\.ome)?\.(zarr|tiff?)$|\.(mosaic|bands)\.toml$", "", last, flags=re.IGNORECASE)
    return _folder_name(Path(stem).stem if stem == last else stem)


def _folder_name(text: str) -> str:
    plain = re.sub(r"[^\w.-]+", "_", text).strip("._")[:80]
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore") or "image"


def _uri_hash(uri: str) -> str:
    return hashlib.sha256(identity(uri).encode()).hexdigest()[:8]
