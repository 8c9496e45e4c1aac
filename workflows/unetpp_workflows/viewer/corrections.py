"""Turns reviews into training data: QuPath GeoJSON per image and a data set that `unetpp prepare` takes.

A region to be corrected becomes a polygon of the class the reviewer gave it; where two overlap, the later one counts.
An accepted region becomes polygons of the classes the model found in it, as long as these are the labels that were
accepted, without what is rejected or to be corrected of it, before or after. All else stays unknown: not labelled, and
not counted by training. What is left out is counted.

Results of one image, of several models, make one row of what was said of them all: a right class is of the image, a
rejection of its own labels, and where labels of two models are accepted, the later acceptance counts.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.durable import output_errors, write_file
from unetpp.errors import ConfigError
from unetpp.geometry import Box, Spacing
from unetpp.io.resample import SPACING_TOLERANCE
from unetpp.levels import NO_DATA
from unetpp_workflows.inputs import identity
from unetpp_workflows.viewer import review
from unetpp_workflows.viewer.catalogue import Result

DATASET, TABLE = "corrections.toml", "corrections.csv"
MAX_REGION_PIXELS = 2**26


def features(*results: Result) -> list[dict[str, Any]]:
    """Return the reviewed regions of the results of one image as QuPath annotations in level-0 pixels.

    Raises:
        ConfigError: an accepted region holds too many pixels to outline.
        StoreError: its labels are damaged.
    """
    import shapely

    found: list[list[dict[str, Any]]] = []
    wrong, later = {result.id: _wrong(results, result) for result in results}, shapely.Polygon()
    accepted: dict[str, Any] = dict.fromkeys(wrong, shapely.Polygon())
    # `prepare` draws small polygons over large ones, whichever was said later: so none may lie over another.
    for result, stored, area in reversed(_regions(results)):
        if stored["verdict"] == "to correct":
            left, later = area.difference(later), later.union(area)
            found.append([] if left.is_empty else [_feature(result, stored, str(stored["label"]), left)])
        else:
            others = (taken for identity, taken in accepted.items() if identity != result.id)
            right = area.difference(shapely.union_all([wrong[result.id], *others]))
            accepted[result.id] = accepted[result.id].union(right)
            found.append([_feature(result, stored, name, shape) for name, shape in _predicted(result, right)])
    return [feature for features in reversed(found) for feature in features]


def collection(result: Result) -> dict[str, Any]:
    """Return `features` as GeoJSON; a member `note` says how many regions are left out, where some are."""
    left = left_out([result])
    note = {"note": "; ".join(left)} if left else {}
    return {"type": "FeatureCollection", "features": features(result), **note}


def left_out(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each reason why regions make no training data."""
    empty = sum(area.is_empty for _, _, area in _regions(results))
    earlier = sum(
        stored["verdict"] == "accepted" and bool(stored.get("region"))
        for result in results
        for stored in review.outdated(result)
    )
    found = {"region(s) without an area": empty, "accepted region(s) of another segmentation of the image": earlier}
    return [f"{count} {what} left out; draw them anew in `unetpp view`" for what, count in found.items() if count]


def export(results: Sequence[Result], folder: Path) -> tuple[Path, int, int]:
    """Write every reviewed image's GeoJSON, a table and a data set into `folder`; an image may have several results.

    Returns:
        the data set, the number of images and of polygons; `left_out` says what is not among them.

    Raises:
        ConfigError: no region is accepted, or to be corrected with a class; or images differ in their models' classes
            or in the pixel size that was given for them; or a file changed between two of its results.
        OutputError: the folder cannot be written.
    """
    images: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if any(not area.is_empty for _, _, area in _regions([result])):
            images.setdefault((identity(result.job.uri), result.job.fingerprint), []).append(result)
    marked = {image: (same, found) for image, same in images.items() if (found := features(*same))}
    if not marked:
        raise ConfigError(
            "no region with an area is accepted or has a corrected class yet; draw some in `unetpp view` first"
            + "".join(f" ({sentence})" for sentence in left_out(results))
        )
    kept = [result for same, _ in marked.values() for result in same]
    others = [result.name for result in kept if result.job.classes != kept[0].job.classes]
    if others:
        raise ConfigError(f"{', '.join(others)}: other classes than {kept[0].name}; export one model's output")
    if twice := [uri for uri, count in Counter(uri for uri, _ in marked).items() if count > 1]:
        names = dict.fromkeys(result.name for result in kept if identity(result.job.uri) in twice)
        raise ConfigError(
            f"{', '.join(names)}: the file changed between the outputs; segment it anew in both, or export one output"
        )
    if len({result.job.spacing_override for result in kept}) > 1:
        raise ConfigError("--spacing was not the same for all images; export them by their own folders of the output")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = [("image", "labels", "group", "split")]
    groups = [same[0].name for same, _ in marked.values()]
    for group, ((uri, _), (same, found)) in zip(groups, marked.items(), strict=True):
        name = f"{group}.{same[0].id[:6]}.geojson"
        content = {"type": "FeatureCollection", "features": found}
        write_file(folder / name, json.dumps(content, ensure_ascii=False).encode())
        # One image of several is kept for validation, so that the set can be trained on as it is; a group is not split.
        split = "val" if len(set(groups)) > 1 and group == groups[-1] else "train"
        rows.append((uri, name, group, split))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_file(folder / TABLE, text.getvalue().encode())
    write_file(folder / DATASET, _dataset(kept).encode())
    return folder / DATASET, len(marked), sum(len(found) for _, found in marked.values())


def _dataset(results: Sequence[Result]) -> str:
    side, job = _common_side([result.ground for result in results]), results[0].job
    at, own = f'spacing = "{side}"\n' if side else "", job.spacing_override
    at += f'image_spacing = "{own.x:.12g}{own.unit}"\n' if own is not None else ""
    parts = [f'name = "corrections"\n\n[data]\ntable = "{TABLE}"\noutside = "ignore"\n{at}']
    for info in job.classes:
        background = "background = true\n" if info.background else ""
        parts.append(
            # TOML takes JSON's escapes, but for the pairs that JSON writes for characters like emoji.
            f"[[classes]]\nname = {json.dumps(info.name, ensure_ascii=False)}\nvalue = {info.value}\n"
            f"color = {list(info.color)}\n{background}"
        )
    return "\n".join(parts)


def _common_side(sizes: Sequence[Spacing | None]) -> str:
    """Return the side of all pixels, "" where they are not squares of one size.

    Only a network that takes level 0 as it is has seen several; another's pixels are off its own by the tolerance.
    """
    known = [size for size in sizes if size is not None]
    sides = [side for size in known for side in (size.y, size.x)]
    if len(known) < len(sizes) or len({size.unit for size in known}) > 1:
        return ""
    return f"{known[0].x:.12g}{known[0].unit}" if max(sides) <= (1 + 2 * SPACING_TOLERANCE) * min(sides) else ""


def _feature(result: Result, stored: dict[str, Any], name: str, shape: Any) -> dict[str, Any]:
    import shapely

    color = next((list(info.color) for info in result.job.classes if info.name == name), [128, 128, 128])
    said = {key: stored[key] for key in ("verdict", "note", "reviewer", "when")}
    return {
        "type": "Feature",
        "geometry": json.loads(shapely.to_geojson(shape)),
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": color},
            "metadata": {key: str(value) for key, value in said.items()},
        },
    }


def _regions(results: Sequence[Result]) -> list[tuple[Result, dict[str, Any], Any]]:
    """Return the statements that make training data, oldest first, with their results and areas, which may be empty."""
    found = [
        (result, stored, _area(stored["region"]))
        for result in results
        for stored in review.current(result)
        if stored.get("region")
        and (stored["verdict"] == "accepted" or (stored["verdict"] == "to correct" and stored.get("label")))
    ]
    return sorted(found, key=lambda item: str(item[1].get("when")))


def _wrong(results: Sequence[Result], result: Result) -> Any:
    """Return the area in which the labels of one of an image's results are said to be wrong."""
    import shapely

    said = (stored for other in results for stored in review.current(other) if review.is_of(stored, result))
    wrong = (stored for stored in said if stored["verdict"] in ("rejected", "to correct"))
    return shapely.union_all([_area(stored["region"]) for stored in wrong if stored.get("region")])


def _area(ring: Sequence[Sequence[float]]) -> Any:
    """Return the polygon or polygons inside a ring of any shape; empty where it has nothing inside."""
    import shapely

    parts = shapely.get_parts(shapely.make_valid(shapely.Polygon(ring)))
    areas = [part for part in parts if part.geom_type in ("Polygon", "MultiPolygon")]
    return areas[0] if len(areas) == 1 else shapely.union_all(areas)


def _predicted(result: Result, region: Any) -> list[tuple[str, Any]]:
    """Return class name and outline, in level-0 pixels, of what the model found inside a region."""
    import shapely
    from rasterio.features import shapes
    from rasterio.transform import Affine

    if region.is_empty:
        return []
    grid = result.job.grid
    x0, y0, x1, y1 = region.bounds
    box = Box(
        int(y0 / grid.step_y), int(x0 / grid.step_x), int(np.ceil(y1 / grid.step_y)), int(np.ceil(x1 / grid.step_x))
    ).clip(grid.height, grid.width)
    if box.area > MAX_REGION_PIXELS:
        raise ConfigError(
            f"{result.name}: an accepted region spans {box.area:,} px; draw at most {MAX_REGION_PIXELS:,}"
        )
    if not box.area:
        return []
    labels = result.job.store.read(box)
    names = {info.value: info.name for info in result.job.classes}
    place = Affine(grid.step_x, 0, box.x0 * grid.step_x, 0, grid.step_y, box.y0 * grid.step_y)
    found = []
    for geometry, value in shapes(labels, mask=labels != NO_DATA, transform=place):
        inside = shapely.intersection(shapely.geometry.shape(geometry), region)
        parts = (part for part in shapely.get_parts(inside) if part.geom_type == "Polygon")
        found += [(names[int(value)], part) for part in parts if int(value) in names]
    return found
