"""How errors are worded for a person."""

from __future__ import annotations

from unetpp.errors import OutputError, one_line


def test_one_line_names_foreign_errors() -> None:
    assert one_line(ValueError("")) == "ValueError: no message"
    assert one_line(OutputError("full")) == "full"
