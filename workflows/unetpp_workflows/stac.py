"""Describes one segmented scene as a STAC item, item.json beside its outputs; knows records, opens no pixels.

STAC 1.1.0 with the extensions projection 2.0.0, classification 2.0.0, processing 1.2.0 and MLM 1.5.0 (stac-extensions).
The item's datetime is that of the segmentation: when the image was taken is in the item of the image, if it has one.
Paths are relative to the item, but those of the image and of the model, which are absolute.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetpp_workflows.inputs import identity
from unetpp_workflows.record import ImageRecord, write_json

if TYPE_CHECKING:
    from unetpp.io.resample import OutputGrid
    from unetpp.package import ModelSpec

ITEM = "item.json"
EXTENSIONS = {
    "projection": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "mlm": "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
}
_TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
_ASSETS = {
    "labels": ("application/vnd.zarr; version=3", ["data"]),
    "geotiff": (_TIFF, ["data"]),
    "ome_tiff": ("image/tiff", ["data"]),
    "ome_zarr_04": ("application/vnd.zarr; version=2", ["data"]),
    "polygons": ("application/geo+json", ["data"]),
    "polygons_gz": ("application/gzip", ["data"]),
    "geopackage": ("application/geopackage+sqlite3", ["data"]),
    "geoparquet": ("application/vnd.apache.parquet", ["data"]),
    "flatgeobuf": ("application/vnd.flatgeobuf", ["data"]),
    "instances": ("application/vnd.apache.parquet", ["data"]),
    "probabilities": ("application/vnd.zarr; version=3", ["data"]),
    "uncertainty": ("application/vnd.zarr; version=3", ["data"]),
    "report": ("text/html", ["overview"]),
}
"""Media type and roles by kind of output; kinds that are not here are no assets."""
_CLASSIFIED = ("labels", "geotiff", "ome_tiff", "ome_zarr_04")


def write_item(folder: Path, record: ImageRecord, spec: ModelSpec, weights: str) -> str | None:
    """Write item.json into an image's folder; returns its name, None where the image has no place on the globe.

    Args:
        weights: URI of the model's weights.

    Raises:
        OutputError: the file cannot be written.
    """
    from unetpp.io.resample import OutputGrid

    grid = OutputGrid.from_json(record.grid)
    geometry = _footprint(grid)
    if geometry is None:
        return None
    write_json(folder / ITEM, _item(record, grid, geometry, spec, weights))
    return ITEM


def _footprint(grid: OutputGrid) -> dict[str, Any] | None:
    """Return the grid's outline as a geometry of RFC 7946."""
    from unetpp.finalize.lonlat import LonLat
    from unetpp.finalize.outlines import Outlines

    if grid.crs is None or grid.transform is None:
        return None
    try:
        lonlat = LonLat(grid.crs, grid.transform, grid.width)
    except ValueError:
        return None
    corners = np.array([[0, 0], [grid.width, 0], [grid.width, grid.height], [0, grid.height]], np.int64)
    return lonlat.geometries(Outlines.of([[corners]]))[0]


def _item(
    record: ImageRecord, grid: OutputGrid, geometry: dict[str, Any], spec: ModelSpec, weights: str
) -> dict[str, Any]:
    classes = _classes(record)
    software = ("unetpp", "torch", "openvino", "llvmlite", "commit")
    assets: dict[str, dict[str, Any]] = {}
    for kind, path in record.outputs.items():
        if kind in _ASSETS:
            media, roles = _ASSETS[kind]
            assets[kind] = {"href": f"./{path}", "type": media, "roles": roles}
            if kind in _CLASSIFIED:
                assets[kind]["classification:classes"] = classes
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS.values()),
        "id": record.name,
        "geometry": geometry,
        "bbox": _bounds(geometry),
        "properties": {
            "datetime": record.finished.replace("+00:00", "Z"),
            **_projection(grid),
            "processing:software": {name: record.software[name] for name in software if name in record.software},
            "processing:datetime": record.finished.replace("+00:00", "Z"),
            "processing:lineage": f"model {record.model['name']}, weights {record.model['digest']}, job {record.key}",
            **_model(record, spec, classes),
        },
        "links": [{"rel": "derived_from", "href": identity(record.input["uri"]), "title": "the image"}],
        "assets": {
            **assets,
            "model": {
                "href": identity(weights),
                "type": "application/octet-stream; application=safetensors",
                "title": "weights of the model",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "bands": [{"name": name} for name in spec.bands],
            },
        },
    }


def _projection(grid: OutputGrid) -> dict[str, Any]:
    from pyproj import CRS

    crs = CRS.from_wkt(str(grid.crs))
    authority = crs.to_authority()
    assert grid.transform is not None
    return {
        "proj:code": ":".join(authority) if authority else None,
        "proj:projjson": crs.to_json_dict(),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": list(grid.transform),
    }


def _classes(record: ImageRecord) -> list[dict[str, Any]]:
    """Return the classes; their names may have letters, digits, - and _ only, so that the real one is the title."""
    found = []
    for info in record.figures["classes"]:
        plain = re.sub(r"[^0-9A-Za-z_-]+", "_", info["name"])
        found.append(
            {
                "value": info["value"],
                "name": plain if plain == info["name"] else f"{plain}_{info['value']}",
                "title": info["name"],
                "description": info["name"],
                "color_hint": "{:02X}{:02X}{:02X}".format(*info["color"]),
                "count": info["px"],
            }
        )
    no_data = {"value": 255, "name": "no_data", "title": "no data", "description": "no data", "nodata": True}
    return [*found, no_data]


def _model(record: ImageRecord, spec: ModelSpec, classes: list[dict[str, Any]]) -> dict[str, Any]:
    name = spec.name if re.fullmatch(r"[a-zA-Z][\w.-]+[a-zA-Z0-9]", spec.name) else f"unetpp-{spec.name}-model"
    tile = list(record.plan["tile_shape"])
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(spec.mean, spec.std, strict=True)]
    kept = ("value", "name", "description", "color_hint")
    kinds = [{key: one[key] for key in kept if key in one} for one in classes if not one.get("nodata")]
    return {
        "mlm:name": name,
        "mlm:architecture": "U-Net" if spec.network == "unet" else "UNet++",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:input": [
            {
                "name": "tile",
                "bands": list(spec.bands),
                "input": {
                    "shape": [-1, len(spec.bands), *tile],
                    "dim_order": ["batch", "channel", "height", "width"],
                    "data_type": spec.dtype,
                },
                "value_scaling": scaling,
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "classes",
                "tasks": ["semantic-segmentation"],
                "result": {"shape": [-1, *tile], "dim_order": ["batch", "height", "width"], "data_type": "uint8"},
                "classification:classes": kinds,
            }
        ],
    }


def _bounds(geometry: dict[str, Any]) -> list[float]:
    """Return west, south, east, north; west is greater than east where the antimeridian cuts (RFC 7946, 5.2)."""
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    boxes = []
    for polygon in polygons:
        points = np.array(polygon[0])
        boxes.append([*points.min(axis=0).tolist(), *points.max(axis=0).tolist()])
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    if any(box[2] >= 180 for box in boxes) and any(box[0] <= -180 for box in boxes) and len(boxes) > 1:
        west = min(box[0] for box in boxes if box[2] >= 180)
        east = max(box[2] for box in boxes if box[0] <= -180)
        return [west, south, east, north]
    return [min(box[0] for box in boxes), south, max(box[2] for box in boxes), north]
