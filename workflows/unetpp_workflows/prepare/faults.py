"""What is wrong with a data set; knows words and weights, not how faults are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, order=True)
class Fault:
    """One fault of one image or of the whole set.

    Attributes:
        level: an error makes the data wrong and nothing is stored; a warning is shown.
        where: the image's name, or "" for the whole set.
        what: one line: what is wrong, the value, what to do.
    """

    level: Level
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def error(what: str, where: str = "") -> Fault:
    return Fault("error", where, what)


def warning(what: str, where: str = "") -> Fault:
    return Fault("warning", where, what)


def some(names: Sequence[str], most: int = 5) -> str:
    """List a few names and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
