"""Draws one self-contained HTML page per image from its record and its outputs; segments and measures nothing.

The page holds the picture (from the pyramid's image levels: never a slide's label or macro photo), what was found, and
how. It loads nothing from anywhere, and every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import write_file
from unetpp.errors import StoreError, one_line
from unetpp.geometry import Spacing
from unetpp.model.orientations import Tta, turns
from unetpp_workflows.drift import words
from unetpp_workflows.record import ImageRecord

REPORT, PICTURE, VALIDITY, ATTENTION = "report.html", "picture.jpg", "validity.png", "uncertain.jpg"
SHOWN_REGIONS = 6
SIDE = 1536
STEPS = ("prepare", "read", "compute", "write", "finalize", "score", "report", "tracking")
_NO_DATA = 255
_NONE = "-"


@dataclass(frozen=True)
class Layer:
    """Pixels of one class as a transparent PNG in its colour."""

    name: str
    color: tuple[int, int, int]
    image: str
    shown: bool = True


def write_report(folder: Path, record: ImageRecord) -> Path:
    """Write `report.html` into an image's folder and return its path; parts whose files are missing are left out.

    Raises:
        StoreError: the labels are damaged; the page is written and says so.
        OutputError: the page cannot be written.
    """
    import jinja2

    labels, fault = labels_or_fault(folder, record)
    rows = figure_rows(record.figures)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetpp_workflows"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        record=record,
        lead=_lead(record),
        fault=fault,
        unusual=words(record.unusual),
        picture=_data_uri(folder / PICTURE, "image/jpeg"),
        layers=[] if labels is None else class_layers(labels, record.model.get("classes", [])),
        validity=None if labels is None else _mask_png(labels == _NO_DATA, (0, 0, 0, 170)),
        reduction=1.0 if labels is None else max(1.0, record.plan["width"] / labels.shape[1]),
        tissue=_tissue(folder, record),
        attention=_attention(folder, record),
        rows=[{**row, "iou": _number((record.iou or {}).get(row["name"]), "{:.3f}")} for row in rows],
        figures_note=_figures_note(record),
        tables=_tables(record),
        config=json.dumps(record.config, indent=1),
        software="\n".join(f"{name} {version}" for name, version in record.software.items()),
    )
    path = folder / REPORT
    write_file(path, page.encode())
    if fault is not None:
        raise StoreError(fault)
    return path


def write_picture(path: Path, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Save a thumbnail (h, w, bands) of any sample type as JPEG; invalid pixels become light grey."""
    from PIL import Image

    rgb = to_rgb(pixels, valid)
    rgb[~valid] = 235
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=85)
    write_file(path, file.getvalue())


def to_rgb(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return (h, w, 3) uint8: the first three bands, or the first as grey; other types stretched between percentiles.

    Percentiles 1 and 99 of the valid pixels of each band map to 0 and 255.
    """
    bands = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    if bands.dtype == np.uint8:
        return np.array(bands)
    stretched = np.zeros(bands.shape, np.uint8)
    for band in range(3):
        samples = bands[..., band][valid].astype(np.float64)
        samples = samples[np.isfinite(samples)]
        if samples.size:
            low, high = np.percentile(samples, (1, 99))
            scaled = (bands[..., band].astype(np.float64) - low) / max(high - low, 1e-12) * 255
            stretched[..., band] = np.nan_to_num(scaled, nan=0.0).clip(0, 255).astype(np.uint8)
    return stretched


def labels_or_fault(folder: Path, record: ImageRecord, side: int = SIDE) -> tuple[NDArray[np.uint8] | None, str | None]:
    """Return an image's `preview_labels`, None where it has none, and what is wrong with them, None where nothing."""
    if "labels" not in record.outputs:
        return None, None
    try:
        return preview_labels(folder / record.outputs["labels"], side), None
    except StoreError as error:
        return None, str(error)


def preview_labels(store: Path, side: int = SIDE) -> NDArray[np.uint8] | None:
    """Return the labels' finest pyramid level of at most `side` px, the coarsest one thinned where none is so small.

    None where the store does not exist or has no level. Raises `StoreError` for a level that does not read.
    """
    try:
        return _preview(store / "classes", side)
    except (FileNotFoundError, KeyError):
        return None
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"{store} is damaged ({one_line(error)}); run `unetpp verify --repair`, then segment again"
        ) from error


def _preview(classes: Path, side: int) -> NDArray[np.uint8] | None:
    import zarr

    group = zarr.open_group(classes, mode="r")
    scales: Any = group.attrs["ome"]
    paths = [dataset["path"] for dataset in scales["multiscales"][0]["datasets"]]
    arrays = [group[path] for path in paths if path in group]
    small = [array for array in arrays if max(array.shape) <= side] or arrays[-1:]  # type: ignore[union-attr]
    if not small:
        return None
    step = -(-max(small[0].shape) // side)  # type: ignore[union-attr]
    return np.asarray(small[0][::step, ::step], dtype=np.uint8)  # type: ignore[index]


def class_layers(labels: NDArray[np.uint8], classes: list[dict[str, Any]]) -> list[Layer]:
    """Return one layer per class that occurs, the background class left out."""
    layers = []
    for info in classes:
        mask = labels == info["value"]
        if mask.any() and not info["background"]:
            color = (int(info["color"][0]), int(info["color"][1]), int(info["color"][2]))
            layers.append(Layer(str(info["name"]), color, _mask_png(mask, (*color, 255)) or ""))
    return layers


def figure_rows(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row of texts per class: name, color, area, share of the valid pixels, objects."""
    valid = figures.get("valid_px", 0)
    return [
        {
            "name": entry["name"],
            "color": entry["color"],
            "area": area_text(entry["area"], entry["unit"]),
            "share": f"{entry['px'] / valid:.1%}" if valid else _NONE,
            "objects": _NONE if entry["objects"] is None else f"{entry['objects']:,}",
        }
        for entry in figures.get("classes", [])
    ]


def area_text(area: float, unit: str) -> str:
    """Write an area with its unit: 12.35 mm², 8,214 m²."""
    sign = {"mm2": "mm²", "m2": "m²"}.get(unit, unit)
    return f"{area:,.0f} {sign}" if area >= 1000 or area == int(area) else f"{area:.4g} {sign}"


def crs_name(wkt: str | None) -> str:
    """Return a CRS by its name and, where its WKT states one, its authority's code."""
    if not wkt:
        return "none"
    name = re.search(r'"([^"]*)"', wkt)
    code = re.search(r'(?:AUTHORITY|ID)\["(\w+)",\s*"?(\w+)"?\]+\s*$', wkt)
    return (name[1] if name else wkt) + (f" ({code[1]}:{code[2]})" if code else "")


def _mask_png(mask: NDArray[np.bool_], color: tuple[int, int, int, int]) -> str | None:
    """Return the mask as a two-colour PNG data URI (outside transparent), None where it is empty."""
    from PIL import Image

    if not mask.any():
        return None
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, *color[:3]])
    file = io.BytesIO()
    image.save(file, "PNG", bits=1, transparency=bytes((0, color[3])), optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _data_uri(path: Path, media: str) -> str | None:
    if not path.is_file():
        return None
    return f"data:{media};base64," + base64.b64encode(path.read_bytes()).decode()


def _attention(folder: Path, record: ImageRecord) -> dict[str, Any] | None:
    found = record.figures.get("attention")
    if not found or found["mean"] is None:
        return None
    return {
        "image": _data_uri(folder / ATTENTION, "image/jpeg"),
        "mean": f"{found['mean']:.3f}",
        "rows": [
            (
                f"{region['x']:.0f}, {region['y']:.0f}",
                f"{region['width']:.0f} x {region['height']:.0f}",
                f"{region['mean']:.3f}",
            )
            for region in found["regions"]
        ],
        "shown": min(SHOWN_REGIONS, len(found["regions"])),
    }


def _tissue(folder: Path, record: ImageRecord) -> dict[str, str] | None:
    image = _data_uri(folder / VALIDITY, "image/png")
    if image is None:
        return None
    slide = record.input.get("kind") == "slide"
    share = record.figures.get("valid_px", 0) / max(1, record.plan["height"] * record.plan["width"])
    return {
        "title": "Tissue" if slide else "Valid pixels",
        "image": image,
        "note": f"White is segmented. {share:.1%} of the image's pixels are valid; the rest is no data (255).",
    }


def _lead(record: ImageRecord) -> str:
    size = f"{record.plan['width']:,} \u00d7 {record.plan['height']:,} px" if record.plan else "not planned"
    version = f" version {record.model['version']}" if record.model.get("version") else ""
    model = f"model {record.model.get('name', '?')}{version}"
    moment = record.finished[:16].replace("T", " ")
    pixel = record.grid.get("spacing")
    return " · ".join((size, str(Spacing(**pixel)) if pixel else "pixel size unknown", model, f"{moment} UTC"))


def _figures_note(record: ImageRecord) -> str:
    areas = {
        "spacing": "Areas are pixels times the pixel size.",
        "planar": "Areas are measured in the plane of the CRS.",
        "geodesic": "Areas are geodesic: exact pixel cells on the ellipsoid.",
        "pixels": "No physical size is known, so areas are in pixels.",
    }.get(record.figures.get("method", ""), "")
    return f"Objects are 4-connected regions of the whole image, joined across shards. {areas}"


def _tables(record: ImageRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    model, engine, plan, shards = record.model, record.engine, record.plan, record.shards
    failed, turned = shards.get("failed", {}), record.input.get("orientation")
    run = [
        ("engine", f"{engine.get('name', _NONE)} {engine.get('version', '')}".strip()),
        ("precision", f"{engine.get('precision', _NONE)}, {engine.get('threads', _NONE)} thread(s) per worker"),
        *([("probabilities", mean_over(engine["tta"]))] if engine.get("tta") else []),
        ("executor", f"{record.executor.get('kind', _NONE)}, {record.executor.get('workers', _NONE)} worker(s)"),
        ("useful share", _number(plan.get("useful_share"), "{:.1%} of computed pixels are written")),
        ("shards", f"{shards.get('total', _NONE)} in all, {shards.get('invalid', 0)} without valid pixels"),
        *[("failed shard", f"{shard}: {message}") for shard, message in failed.items()],
        ("throughput", _number(record.mpx_per_worker_second, "{:.2f} Mpx/s of valid output per worker")),
        *[(f"time, {step}", f"{record.seconds[step]:.1f} s") for step in STEPS if step in record.seconds],
        ("MLflow run", record.tracking_run or "not recorded"),
        ("key", (record.key or _NONE)[:16]),
    ]
    source = [
        ("image", record.input.get("uri", _NONE)),
        ("format", f"{record.input.get('format', _NONE)}, {record.input.get('dtype', _NONE)}"),
        ("bands", ", ".join(record.input.get("bands", [])) or _NONE),
        *([("shown turned", f"orientation {turned}, not applied: all lies on the stored pixels")] if turned else []),
        ("pixel size", record.input.get("spacing") or "unknown"),
        *([("pixel size given", given)] if (given := record.input.get("spacing_override")) else []),
        ("CRS", crs_name(record.input.get("crs"))),
        ("fingerprint", str(record.input.get("fingerprint", _NONE))[:16]),
    ]
    weights = [
        ("model", model.get("name", _NONE)),
        ("version", " @".join(str(part) for part in (model.get("version"), model.get("alias")) if part) or _NONE),
        ("digest", str(model.get("digest", _NONE))[:16]),
        ("trained at", model.get("spacing") or "no stated pixel size: ran at the image's own pixels"),
    ]
    return [("Run", run), ("Image", source), ("Model", weights)]


def mean_over(tta: Tta) -> str:
    """Say over which orientations probabilities were averaged, of any but "none"."""
    return f"mean over {len(turns(tta))} orientations ({tta})"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else form.format(value)
