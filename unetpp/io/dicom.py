"""Finds the DICOM files of a folder that make up one slide each; decodes none and reads nothing of the patient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

SUFFIX = ".dcm"
_HEADER_BYTES = 2**16
_FILES_KEPT = 2**16
_PREAMBLE = 132
_CLASS, _SERIES = (0x0002, 0x0002), (0x0020, 0x000E)
"""Tags of what kind of object a file holds, and of the series that it belongs to."""
_SLIDE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Types of values whose length takes four bytes."""
_ITEMS, _END_OF_SEQUENCE, _UNDEFINED = 0xFFFE, 0xE0DD, 0xFFFFFFFF


def slides_in(folder: Path) -> list[Path]:
    """Return one file of each slide whose DICOM files lie directly in a folder: the first by name of each series.

    Annotations, segmentations, reports and images that are no slides do not count.
    """
    found: dict[str, Path] = {}
    for file in _dicom_files(folder):
        if (series := _series(file)) is not None:
            found.setdefault(series or file.name, file)
    return sorted(found.values())


def files_beside(file: Path) -> list[Path]:
    """Return the other files of a slide: of its folder those of its series, all slides where it does not state one."""
    series = _series(file)
    others = [other for other in _dicom_files(file.parent) if other != file]
    return [other for other in others if (found := _series(other)) is not None and (found == series or not series)]


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())


def _series(file: Path) -> str | None:
    """Return the series of a slide's file, "" where it does not state one; None where it is no slide's."""
    facts = file.stat()
    return _series_of(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(_FILES_KEPT)
def _series_of(file: Path, size: int, changed: int) -> str | None:
    """See `_series`; of n slides in one folder each asks for the series of all files."""
    with file.open("rb") as opened:
        stated = dict(_elements(opened.read(_HEADER_BYTES)))
    return stated.get(_SERIES, b"").decode(errors="replace") if stated.get(_CLASS, _SLIDE) == _SLIDE else None


def _elements(header: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield the elements of a file up to its series, but those in sequences, which may name other files' series.

    Explicit little endian, as all compressed slides are (PS3.5, sections 7.1.2 and 7.5); all else has no such elements.
    """
    at, depth = _PREAMBLE, 0
    while at + 12 <= len(header):
        group, element = (int.from_bytes(header[at + i : at + i + 2], "little") for i in (0, 2))
        kind = header[at + 4 : at + 6]
        if group == _ITEMS:  # has no type, and is entered
            depth -= element == _END_OF_SEQUENCE
            at += 8
            continue
        if (group, element) > _SERIES and not depth:
            return
        start = at + (12 if kind in _LONG else 8)
        length = int.from_bytes(header[start - 4 : start] if kind in _LONG else header[start - 2 : start], "little")
        if length == _UNDEFINED:
            depth, at = depth + 1, start
            continue
        if not depth:
            yield (group, element), header[start : start + length].rstrip(b"\0 ")
        at = start + length
