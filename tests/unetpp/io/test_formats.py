"""The table of formats claims exactly what marked tests prove: read from the tests' source, in both directions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from unetpp.io.formats import FORMATS


def _marks() -> Iterator[tuple[str, str]]:
    """Yield the format and the test of every mark `proves` on a test function."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.proves":
                        for name in mark.args:
                            yield ast.literal_eval(name), f"{file.name}::{node.name}"


def test_every_proven_format_has_its_test_and_every_such_test_its_format() -> None:
    claimed = {(entry.name, entry.proof) for entry in FORMATS if entry.proof}
    assert claimed == set(_marks())
    assert len({entry.name for entry in FORMATS}) == len(FORMATS)


def test_what_is_staged_or_unreadable_from_afar_is_said_so() -> None:
    """The suffixes that the remote reader refuses are those of the formats that say "no"."""
    from unetpp.io.remote_image import _IN_SEVERAL_FILES

    refused = " ".join(entry.name.upper() for entry in FORMATS if entry.remote == "no")
    assert all(suffix.strip(".").upper() in refused.replace("DICOM", "DCM") for suffix in _IN_SEVERAL_FILES)
