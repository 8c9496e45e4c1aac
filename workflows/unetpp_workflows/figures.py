"""Turns a measurement's counts into figures that JSON can hold; measures nothing and draws nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from unetpp.metrics import Confusion, bootstrap
from unetpp.train.measure import Measurement


def figures(names: Sequence[str], found: Measurement) -> dict[str, Any]:
    """Return a measurement's figures as JSON values, pooled over all images, with 95% intervals over groups."""
    total = found.total()
    states = np.stack([counts.confusion.matrix for counts in found.groups.values()])
    low, high = bootstrap(states, lambda state: Confusion.from_state(state).iou)
    values: dict[str, Any] = {
        "iou": per_class(names, total.confusion.iou),
        "iou_low": per_class(names, low),
        "iou_high": per_class(names, high),
        "dice": per_class(names, total.confusion.dice),
        "precision": per_class(names, total.confusion.precision),
        "recall": per_class(names, total.confusion.recall),
        "boundary_f1": per_class(names, total.boundary.f1),
        "mean_iou": number(np.nanmean(total.confusion.iou)),
        "accuracy": number(total.confusion.accuracy),
        "ece": number(total.calibration.ece),
        "temperature": number(total.temperature.best),
        "groups": len(found.groups),
        "iou_by_group": {name: per_class(names, counts.confusion.iou) for name, counts in sorted(found.strata.items())},
    }
    if total.objects is not None:
        quality = total.objects
        values["objects"] = {name: number(getattr(quality, name)) for name in ("pq", "sq", "f1", "aji")}
    return values


def per_class(names: Sequence[str], values: Any) -> dict[str, float | None]:
    return {name: number(value) for name, value in zip(names, values, strict=True)}


def number(value: Any) -> float | None:
    """NaN (a class that does not occur) is not JSON: it becomes None."""
    return None if math.isnan(value) else round(float(value), 4)


def plain(value: Any) -> Any:
    """Return nested values as JSON has them: None for NaN, the IoU of a class that does not occur."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
