"""Looks at this machine and installation and says what works, what is missing and what to do; changes nothing."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from unetpp.errors import UnetppError
from unetpp_workflows.cli_options import plain_table
from unetpp_workflows.record import software

_MIN_FREE_BYTES = 1 << 30
_HUGE_PAGES = {
    "always": "huge pages: the system gives them to every program",
    "set": "huge pages: as GLIBC_TUNABLES says, which is 1 from the command unetpp unless it was set before",
    "possible": "huge pages: the command unetpp asks for them, this program did not",
    "never": "huge pages: not offered here; on Linux with glibc 2.35, "
    "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` as root makes networks a few percent faster",
}
_READERS = {
    "slides (SVS, NDPI, MRXS, SCN, BIF, DICOM)": "openslide",
    "scenes (GeoTIFF, COG, VRT)": "rasterio",
    "OME-Zarr, Zarr": "zarr",
    "PNG, JPEG": "PIL",
    "TIFF": "tifffile",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's page; only "missing" makes the command fail."""

    topic: str
    state: Literal["ok", "note", "missing"]
    text: str


def examine(output: Path, tracking_uri: str | None = None) -> list[Finding]:
    """Return every finding; `output` is where the disk's free space is read."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _processor,
        _gpus,
        _engines,
        _readers,
        _models,
        lambda: _disk(output),
        lambda: _store(tracking_uri),
        _samples,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except (ImportError, OSError) as error:  # a library that does not load must not hide the other findings
            findings.append(Finding("installation", "missing", f"{error}; reinstall with `pip install unetpp`"))
    return findings


def print_findings(findings: list[Finding], console: Console) -> None:
    table = plain_table("", "", "")
    table.show_header = False
    styles = {"ok": "green", "note": "yellow", "missing": "bold red"}
    topic = ""
    for finding in findings:
        shown = "" if finding.topic == topic else finding.topic
        topic = finding.topic
        table.add_row(shown, f"[{styles[finding.state]}]{finding.state}[/]", escape(finding.text))
    console.print(table)


def print_bench(console: Console) -> None:
    """Measure the engine of this machine on a bundled model and print the rows; `ModelNotFoundError` without one."""
    from unetpp.engine.bench import bench, best_row
    from unetpp.package import bundled_names, bundled_package, load_package
    from unetpp_workflows import estimates
    from unetpp_workflows.machine import worker_count

    names = bundled_names()
    package = load_package(bundled_package("nuclei" if "nuclei" in names or not names else names[0]))
    columns = ("engine", "workers", "tile px", "core px", "useful", "computed Mpx/s", "written Mpx/s", "peak MB")
    table = plain_table(*columns)
    workers = worker_count(threads=1)
    with console.status(f"measuring {package.spec.name} with {workers} worker(s)"):
        rows = bench(package, workers=workers)
    best = best_row(rows)
    for row in rows:
        table.add_row(
            f"{row.engine} {row.precision} {row.device}",
            f"{row.workers} x {row.threads}",
            str(row.tile),
            str(row.core),
            f"{row.useful_share:.0%}",
            f"{row.computed_mpx_s:.2f}",
            f"{row.written_mpx_s:.2f}",
            "-" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            style="bold" if row is best else None,
        )
    console.print(table)
    console.print(f"model {package.spec.name}; measured now on this machine; most pixels written per second in bold")
    console.print(f"kept for `unetpp plan` in {estimates.save(package.spec.architecture, rows)}", soft_wrap=True)


def print_formats(console: Console) -> None:
    """Print every image format: who reads it, how it is read from afar, and the test that proves its pixels."""
    from unetpp.io.formats import FORMATS

    table = plain_table("format", "reader", "remote", "proven by")
    for entry in FORMATS:
        proof = escape(entry.proof) if entry.proof else "[yellow]should work, no test[/]"
        table.add_row(entry.name, entry.reader, entry.remote, proof)
    console.print(table)
    proven = sum(bool(entry.proof) for entry in FORMATS)
    console.print(f"{proven} of {len(FORMATS)} proven; remote: read in ranges of bytes, staged as a local copy, or no")


def _versions() -> Iterator[Finding]:
    versions = dict(software())  # a copy: records say the same
    yield Finding("python", "ok", f"{versions.pop('python')} on {versions.pop('platform')}")
    yield Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _processor() -> Iterator[Finding]:
    from unetpp.allocation import huge_pages
    from unetpp.processor import cpu_flags, cpu_has_bf16
    from unetpp_workflows.machine import cpu_count

    flags = cpu_flags()
    wanted = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if name in flags
    ]
    text = f"{cpu_count()} core(s) usable of {os.cpu_count()}, {platform.machine()}, {' '.join(wanted) or 'no AVX'}"
    yield Finding("processor", "ok", f"{text}; bf16 in hardware: {'yes' if cpu_has_bf16() else 'no, fp32 is used'}")
    pages = huge_pages()
    yield Finding("processor", "note" if pages == "never" else "ok", _HUGE_PAGES[pages])


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = "this torch has no CUDA" if torch.version.cuda is None else "no device or driver"
        yield Finding("gpu", "note", f"none ({built}); the CPU is used")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        yield Finding("gpu", "ok", f"{device.name}, {memory:.0f} GiB, compute {device.major}.{device.minor}")


def _engines() -> Iterator[Finding]:
    from unetpp.engine import engine_reasons

    reasons = engine_reasons()
    for name, available, why in reasons:
        yield Finding("engine", "ok" if available else "note", f"{name}: {why}")
    if not any(available for _, available, _ in reasons):
        yield Finding("engine", "missing", "no engine works; reinstall with `pip install unetpp`")


def _readers() -> Iterator[Finding]:
    for formats, module in _READERS.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            yield Finding("images", "missing", f"{formats}: {module} does not import: {error}")
        else:
            yield Finding("images", "ok", f"{formats}: {module}")


def _models() -> Iterator[Finding]:
    from unetpp.package import bundled_names, bundled_package, load_package

    names = bundled_names()
    if not names:
        yield Finding("models", "missing", "no bundled model; reinstall unetpp, or train one with `unetpp train`")
    for name in names:
        try:
            package = load_package(bundled_package(name))
        except UnetppError as error:
            yield Finding("models", "missing", str(error))
        else:
            classes = ", ".join(c.name for c in package.spec.classes)
            yield Finding("models", "ok", f"{name}: {classes} (digest {package.digest[:12]})")


def _disk(folder: Path) -> Iterator[Finding]:
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:.1f} GiB free at {there}"
    if not os.access(there, os.W_OK):
        yield Finding("disk", "missing", f"{there} cannot be written; choose another output folder")
    elif free < _MIN_FREE_BYTES:
        yield Finding("disk", "missing", f"{text}; free some space")
    else:
        yield Finding("disk", "ok", text)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(there for there in (path, *path.parents) if there.exists())


def _store(tracking_uri: str | None) -> Iterator[Finding]:
    from unetpp_workflows.mlflow_store import shown, store_uri
    from unetpp_workflows.registry import list_models

    uri = store_uri(tracking_uri)
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).exists():
        if (there := _existing(Path(path))).is_dir() and os.access(there, os.W_OK):
            yield Finding("mlflow", "note", f"{shown(uri)} does not exist yet; the first registration creates it")
        else:
            advice = "set UNETPP_HOME or --tracking-uri"
            yield Finding("mlflow", "missing", f"{shown(uri)} cannot be made: {there} cannot be written; {advice}")
        return
    try:
        models = list_models(tracking_uri=uri)
    except (UnetppError, ImportError) as error:
        yield Finding("mlflow", "missing", str(error))
        return
    yield Finding("mlflow", "ok", f"{shown(uri)}, {len(models)} model version(s)")


def _samples() -> Iterator[Finding]:
    folder = os.environ.get("UNETPP_DATA")
    if not folder:
        yield Finding("samples", "note", "UNETPP_DATA is not set; the demo downloads its images, or draws them")
    elif not Path(folder).is_dir():
        yield Finding("samples", "missing", f"UNETPP_DATA={folder} is no folder; correct or unset it")
    else:
        yield Finding("samples", "ok", f"UNETPP_DATA={folder}")
