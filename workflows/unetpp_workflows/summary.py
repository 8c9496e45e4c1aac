"""What one call came to: a status per image, the table a person reads, and the exit code a scheduler reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape

from unetpp.errors import OutputError
from unetpp_workflows.cli_options import plain_table
from unetpp_workflows.drift import words
from unetpp_workflows.record import ImageRecord, Status
from unetpp_workflows.report import area_text

_STYLE = {"done": "green", "empty": "yellow", "partial": "yellow", "failed": "bold red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """One image of a call.

    Attributes:
        message: Why the status is not done; one line.
        warning: What went wrong after the image itself was done, like a tracking server that does not answer.
        reused: An earlier call had finished it and nothing was computed now.
        unusual: What of the image is unlike the training images, in words.
        uncertainty: Its mean, where it was asked for.
        areas, objects: Of the classes that are not background, in words; empty where the image is not done.
    """

    name: str
    uri: str
    status: Status
    folder: Path | None = None
    message: str | None = None
    warning: str | None = None
    seconds: float = 0.0
    reused: bool = False
    unusual: str | None = None
    uncertainty: float | None = None
    areas: str = ""
    objects: str = ""

    @classmethod
    def of(cls, folder: Path, record: ImageRecord, *, uri: str, seconds: float = 0.0, reused: bool = False) -> Self:
        """Return what a record says; the record itself stays in its file, for a call may have a million images."""
        areas, objects = _figures(record) if record.status == "done" else ("", "")
        return cls(
            name=folder.name,
            uri=uri,
            status=record.status,
            folder=folder,
            message=record.message,
            warning=record.warning,
            seconds=seconds,
            reused=reused,
            unusual=words(record.unusual) or None,
            uncertainty=(record.figures.get("attention") or {}).get("mean"),
            areas=areas,
            objects=objects,
        )

    @property
    def record(self) -> ImageRecord | None:
        """Read this result's record, None where there is none. Raises `StoreError`."""
        record = None if self.folder is None else ImageRecord.read(self.folder)
        # Of an image that failed now and was done before, the record still says what was done.
        return record if record is not None and record.status == self.status else None


@dataclass(frozen=True)
class Summary:
    """All images of a call, in the order they were named.

    `faults` are what of the call itself could not be written, beside its images: tables, log, metrics; a line each.
    """

    images: tuple[ImageResult, ...]
    seconds: float
    faults: tuple[str, ...] = ()

    def with_fault(self, fault: OutputError | None) -> Self:
        """Return the summary with one fault more, where there is one."""
        return self if fault is None else replace(self, faults=(*self.faults, str(fault)))

    def of(self, status: Status) -> list[ImageResult]:
        return [image for image in self.images if image.status == status]

    @property
    def exit_code(self) -> int:
        """0 when every image is done or empty, and recorded, and so is the call; else 1."""
        bad = any(image.status in ("partial", "failed") or image.warning for image in self.images)
        return int(bad or bool(self.faults))

    def sentence(self) -> str:
        """Say how it went: the number segmented, then every other image by name."""
        parts = [f"{len(self.of('done'))} of {len(self.images)} images segmented in {self.seconds:.1f} s"]
        reused = sum(image.reused for image in self.images)
        if reused:
            parts.append(f"{reused} of them unchanged since an earlier run")
        for status, what in (
            ("empty", "nothing to segment in"),
            ("partial", "not complete"),
            ("failed", "failed"),
        ):
            names = [image.name for image in self.images if image.status == status]
            if names:
                parts.append(f"{what}: {', '.join(names)}")
        return "; ".join(parts)


def print_summary(summary: Summary, console: Console) -> None:
    """Print one row per image, one line per problem, and the sentence."""
    table = plain_table("image", "status", "area", "objects", "worker s")
    table.columns[-1].justify = "right"
    for image in summary.images:
        table.add_row(
            escape(image.name),
            f"[{_STYLE[image.status]}]{image.status}[/]",
            image.areas or "-",
            image.objects or "-",
            "reused" if image.reused else f"{image.seconds:.1f}",
        )
    if summary.images:
        console.print(table)
    for image in summary.images:
        for kind, text in ((image.status, image.message), ("warning", image.warning)):
            if text:
                told = text if kind == "failed" else f"{image.name}: {text}"  # a failure names the image itself
                console.print(f"{kind}: {told}", markup=False, highlight=False, soft_wrap=True)
    for fault in summary.faults:
        console.print(f"warning: {fault}", markup=False, highlight=False, soft_wrap=True)
    if look := _most_uncertain(summary):
        console.print(f"most worth a look: {look}", markup=False, highlight=False, soft_wrap=True)
    for image in summary.images:
        if image.unusual:
            text = f"look twice: {image.name} is unlike the training images: {image.unusual}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(summary.sentence(), markup=False, highlight=False, soft_wrap=True)
    folders = sorted({str(image.folder.parent) for image in summary.images if image.folder})
    for folder in folders:
        where = f"records and reports: {folder}/<image>/record.json and report.html"
        console.print(where, markup=False, highlight=False, soft_wrap=True)


def _most_uncertain(summary: Summary, count: int = 5) -> str:
    """Name the images with the highest mean uncertainty, with it; empty where none was measured."""
    found = [(-image.uncertainty, image.name) for image in summary.images if image.uncertainty is not None]
    return ", ".join(f"{name} {-mean:.3f}" for mean, name in sorted(found)[:count])


def _figures(record: ImageRecord) -> tuple[str, str]:
    found = [entry for entry in record.figures.get("classes", []) if not entry["background"]]
    areas = [f"{escape(entry['name'])} {area_text(entry['area'], entry['unit'])}" for entry in found]
    objects = [f"{entry['objects']:,}" for entry in found if entry["objects"] is not None]
    return "\n".join(areas), "\n".join(objects)
