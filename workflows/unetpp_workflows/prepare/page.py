"""Draws one self-contained page of a training store: pictures with their labels, classes, splits, faults.

Reads a finished store, or the faults that kept one from being made; changes neither.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import write_file
from unetpp.levels import NO_DATA
from unetpp.train.store import PatchStore
from unetpp_workflows.prepare.build import Prepared
from unetpp_workflows.prepare.faults import lines
from unetpp_workflows.report import to_rgb

SAMPLES = 8
_OPACITY = 0.5
_OUTLINE = np.array([255, 255, 255], np.uint8)


def page_path(store: Path) -> Path:
    return store.with_suffix(".html")


def write_page(prepared: Prepared) -> Path:
    """Write the page beside the store and return its path. Raises `OutputError`, `StoreError` for damage."""
    import jinja2

    facts = prepared.facts
    store = PatchStore.open(prepared.store) if facts is not None else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetpp_workflows"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("prepare.html.j2").render(
        name=(facts or {}).get("name") or prepared.store.stem,
        facts=facts,
        errors=lines(prepared.errors),
        warnings=lines(fault for fault in prepared.faults if fault.level == "warning"),
        splits=[] if store is None else [_split(store, split) for split in store.splits],
        classes=[] if facts is None else _classes(facts),
        table=[] if store is None else _facts(store),
    )
    path = page_path(prepared.store)
    write_file(path, page.encode())
    return path


def _split(store: PatchStore, split: str) -> dict[str, Any]:
    facts = store.facts["splits"][split]
    groups = {image.group for image in store.images if image.split == split}
    return {
        "name": split,
        "images": facts["images"],
        "groups": len(groups),
        "patches": facts["patches"],
        "samples": [_sample(store, number) for number in _chosen(store, split)],
    }


def _chosen(store: PatchStore, split: str) -> list[int]:
    """Return labelled patches spread over the split, each class with one that it is most frequent in."""
    mine = np.array([image.split == split for image in store.images])[store.image] & store.counts.any(1)
    numbers = np.flatnonzero(mine)
    if not len(numbers):
        return []
    richest = [int(numbers[store.counts[numbers, k].argmax()]) for k in range(store.counts.shape[1])]
    spread = numbers[np.linspace(0, len(numbers) - 1, min(SAMPLES, len(numbers))).astype(int)].tolist()
    return sorted(list(dict.fromkeys([*richest, *spread]))[:SAMPLES])


def _sample(store: PatchStore, number: int) -> dict[str, str]:
    patch, box = store.patch(number), store.box[number]
    height, width = int(box[2] - box[0]), int(box[3] - box[1])
    pixels, labels = patch.pixels[:height, :width], patch.labels[:height, :width]
    rgb = to_rgb(pixels, np.ones(labels.shape, bool))
    image = store.images[int(store.image[number])]
    return {
        "name": image.name,
        "place": f"x {box[1]}, y {box[0]}",
        "picture": jpeg(rgb),
        "overlay": jpeg(overlay(rgb, labels, [c.color for c in store.classes], [c.background for c in store.classes])),
    }


def overlay(
    rgb: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    colors: Sequence[tuple[int, int, int]],
    background: Sequence[bool],
) -> NDArray[np.uint8]:
    """Return a picture with each class in its colour, white borders between labels, and grey stripes without one."""
    mixed = rgb.astype(np.float32)
    for index, (color, plain) in enumerate(zip(colors, background, strict=True)):
        if not plain:
            here = labels == index
            mixed[here] = mixed[here] * (1 - _OPACITY) + np.array(color, np.float32) * _OPACITY
    rows, cols = np.indices(labels.shape)
    mixed[(labels == NO_DATA) & ((rows + cols) % 8 < 2)] = 128
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    result = mixed.astype(np.uint8)
    result[border] = _OUTLINE
    return result


def _classes(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for index, info in enumerate(facts["classes"]):
        shares = []
        for split in facts["splits"].values():
            total = sum(split["labelled"])
            shares.append(f"{split['labelled'][index] / total:.2%}" if total else "-")
        rows.append({"name": info["name"], "color": info["color"], "shares": shares})
    return rows


def _facts(store: PatchStore) -> list[tuple[str, str]]:
    return [
        ("patches", f"{len(store.image):,} of {store.side} x {store.side} px"),
        ("bands", f"{', '.join(store.bands)} ({store.dtype})"),
        ("pixel size", str(store.spacing) if store.spacing else "none: images are stored at their own pixels"),
        ("mean", ", ".join(f"{value:.5g}" for value in store.mean)),
        ("standard deviation", ", ".join(f"{value:.5g}" for value in store.std)),
        ("objects", "told apart" if store.facts["objects"] else "not told apart"),
        ("fingerprint", store.fingerprint[:16]),
    ]


def jpeg(rgb: NDArray[np.uint8]) -> str:
    """Return a picture (h, w, 3) as a JPEG data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
