"""Keeps the counts of the images that an evaluation has judged, so that an interrupted one goes on; judges nothing."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path

import torch

from unetpp.home import home
from unetpp.train.measure import Counts

log = logging.getLogger(__name__)


class EvaluationJournal:
    """A file of one line per judged image, in unetpp's folder of this user.

    Lines are whole or ignored. Two processes that judge the same append equal lines.

    Args:
        key: see `evaluation_key`; the device and torch's version, which move the last bits, have files of their own.
        device: "cpu" or "cuda".
    """

    def __init__(self, key: str, device: str) -> None:
        self.path: Path = home() / "evaluations" / f"{key}-{device}-{torch.__version__}.jsonl"
        self._broken = False

    def known(self) -> dict[int, Counts]:
        """Return the counts of the images that were judged, by their index."""
        found: dict[int, Counts] = {}
        if not self.path.is_file():
            return found
        for line in self.path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                found[int(entry["image"])] = Counts.from_state(entry["counts"])
            except (ValueError, KeyError, TypeError):
                continue  # a process was killed while it wrote this line: the image is judged again
        return found

    def add(self, image: int, counts: Counts) -> None:
        """Keep an image's counts; where that cannot be written, say so once: the evaluation itself needs no file."""
        if self._broken:
            return
        line = json.dumps({"image": image, "counts": counts.state()}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # A line that an earlier process left half must not swallow this one.
                file.write(b"\n" + line.encode())
        except OSError as error:
            self._broken = True
            log.warning("%s: %s; interrupted, this evaluation would begin anew", self.path, error.strerror)

    def discard(self) -> None:
        """Delete the file: the evaluation is kept elsewhere."""
        with suppress(OSError):  # it was never written, or costs a few kilobytes
            self.path.unlink()
