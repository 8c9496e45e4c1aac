"""Keeps what reviewers said of images and regions in an append-only log, reviews.jsonl beside the image folders.

One line is one statement, written and flushed as a whole under a lock; the newest statement of an id counts, and
nothing is ever changed or removed. A line that a crash cut short is skipped. A verdict is about one segmentation; the
class that a region should have is about the image, and outlives the segmentation.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unetpp.durable import output_errors
from unetpp_workflows.viewer.catalogue import Result

LOG = "reviews.jsonl"
Verdict = Literal["accepted", "rejected", "to correct", "withdrawn"]


class Statement(BaseModel):
    """What a reviewer sends.

    Attributes:
        id: of an earlier statement that this one replaces; the whole image has the id "image".
        verdict: "withdrawn" takes the earlier statement back.
        region: ring of (x, y) in level-0 pixels, not closed; None is the whole image.
        label: class that a region to be corrected should have.
        reviewer: who says so; the user who runs the program where empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default="", pattern=r"^([0-9a-f]{16}|image)?$")
    verdict: Verdict
    note: str = Field(default="", max_length=4000)
    reviewer: str = Field(default="", max_length=200)
    label: str | None = Field(default=None, max_length=200)
    region: tuple[tuple[float, float], ...] | None = Field(default=None, min_length=3, max_length=5000)

    @field_validator("region")
    @classmethod
    def _is_finite(cls, value: tuple[tuple[float, float], ...] | None) -> tuple[tuple[float, float], ...] | None:
        if value is not None and not all(abs(number) < 1e9 for point in value for number in point):
            raise ValueError("a region's coordinates are level-0 pixels")
        return value

    @model_validator(mode="after")
    def _is_of_one_thing(self) -> Self:
        if self.id == "image" and self.region is not None:
            raise ValueError("the verdict on the whole image has no region; leave out its id for one on a region")
        if self.id not in ("", "image") and self.region is None and self.verdict != "withdrawn":
            raise ValueError("the statement on a region needs its region")
        if self.label is not None and (self.region is None or self.verdict != "to correct"):
            raise ValueError("a label is for a region to be corrected")
        return self


def add(result: Result, statement: Statement) -> dict[str, Any]:
    """Append a statement about a result; on the disk when this returns. Returns what was stored.

    Raises:
        ValueError: the label is no class of the model, or the region lies outside the image.
        OutputError: the folder cannot be written.
    """
    names = [info.name for info in result.job.classes]
    if statement.label is not None and statement.label not in names:
        raise ValueError(f"{statement.label!r} is no class; choose one of {', '.join(names)}")
    width, height = int(result.job.image["width"]), int(result.job.image["height"])
    if statement.region is not None and not _meets(statement.region, width, height):
        raise ValueError(f"the region lies outside the image, which has {width} x {height} px")
    values = statement.model_dump(mode="json")
    if not values["id"]:
        values["id"] = secrets.token_hex(8) if statement.region else "image"
    stored = {
        **values,
        "reviewer": statement.reviewer.strip() or _user(),
        "image": result.name,
        "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "fingerprint": result.job.fingerprint,
        "key": result.job.key,
        "model": result.model,
    }
    _append(result.reviews / LOG, json.dumps(stored, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return stored


def current(result: Result) -> list[dict[str, Any]]:
    """Return the statements about a result that count, oldest first: those about its pixels and labels."""
    return [stored for stored in _standing(result) if is_of(stored, result)]


def outdated(result: Result) -> list[dict[str, Any]]:
    """Return the statements about other labels of the same pixels than the result's, oldest first."""
    return [stored for stored in _standing(result) if not is_of(stored, result)]


def is_of(stored: dict[str, Any], result: Result) -> bool:
    """Say whether a statement about the pixels of a result is about its labels, too, or about the pixels alone."""
    return stored.get("label") is not None or stored.get("key") == result.job.key


def verdicts(results: Sequence[Result]) -> dict[str, str]:
    """Return the verdict that counts on each whole image by the result's id."""
    newest: dict[tuple[Path, Any, Any], dict[str, Any]] = {}
    for folder in {result.reviews for result in results}:
        for stored in _read(folder / LOG):
            if stored.get("id") == "image":
                newest[folder, stored.get("image"), stored.get("fingerprint")] = stored
    found = {}
    for result in results:
        stored = newest.get((result.reviews, result.name, result.job.fingerprint), {})
        if stored.get("verdict") != "withdrawn" and is_of(stored, result):
            found[result.id] = str(stored["verdict"])
    return found


def _standing(result: Result) -> list[dict[str, Any]]:
    """Return what was said last under each id about the pixels of a result, unless it was withdrawn."""
    newest: dict[str, dict[str, Any]] = {}
    for stored in _read(result.reviews / LOG):
        if stored.get("image") == result.name and stored.get("fingerprint") == result.job.fingerprint:
            newest[str(stored.get("id"))] = stored
    kept = [stored for stored in newest.values() if stored.get("verdict") != "withdrawn"]
    return sorted(kept, key=lambda stored: str(stored.get("when")))


def _meets(ring: Sequence[tuple[float, float]], width: int, height: int) -> bool:
    """Say whether the box around a ring has a place in common with an image."""
    xs, ys = [x for x, _ in ring], [y for _, y in ring]
    return max(xs) >= 0 and max(ys) >= 0 and min(xs) <= width and min(ys) <= height


def _append(path: Path, line: bytes) -> None:
    with output_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            stored = json.loads(line)
        except ValueError:
            # Empty, or cut short by a crash while it was written: it was never acknowledged.
            continue
        if isinstance(stored, dict):
            found.append(stored)
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
