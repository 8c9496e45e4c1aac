"""What is wrong with a data set; knows words and weights, not how faults are found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        detail: what differs between images that share a fault, such as a count.
    """

    level: Level
    where: str
    what: str
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.what}: {self.detail}" if self.detail else self.what
        return f"{self.where}: {text}" if self.where else text


def error(what: str, where: str = "", detail: str = "") -> Fault:
    return Fault("error", where, what, detail)


def warning(what: str, where: str = "", detail: str = "") -> Fault:
    return Fault("warning", where, what, detail)


def lines(faults: Iterable[Fault]) -> list[str]:
    """Return one line per fault, and one for all images that share it."""
    shared: dict[str, list[Fault]] = {}
    for fault in faults:
        shared.setdefault(fault.what, []).append(fault)
    result = []
    for what, same in shared.items():
        if len(same) == 1:
            result.append(str(same[0]))
        else:
            places = [f"{f.where} {f.detail}" if f.detail else f.where for f in same]
            result.append(f"{what}: {len(same)} images: {some(places)}")
    return result


def some(names: Sequence[str], most: int = 5) -> str:
    """List a few names and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
