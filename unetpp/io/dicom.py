"""Finds the DICOM files of a folder that make up one slide each; decodes none and reads nothing of the patient."""

from __future__ import annotations

import re
from pathlib import Path

SUFFIX = ".dcm"
_HEADER_BYTES = 2**16
# Explicit little endian, as all compressed slides are: tag (0020,000E), type UI, length, value. PS3.5, section 7.1.2.
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI..([0-9.]+)", re.DOTALL)


def slides_in(folder: Path) -> list[Path]:
    """Return one file of each slide whose DICOM files lie directly in a folder: the first by name of each series."""
    found: dict[str, Path] = {}
    for file in sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX and file.is_file()):
        found.setdefault(_series(file), file)
    return sorted(found.values())


def _series(file: Path) -> str:
    """Return the file's series, or its own name where the header does not say it."""
    with file.open("rb") as opened:
        match = _SERIES.search(opened.read(_HEADER_BYTES))
    return match[1].decode() if match else file.name
