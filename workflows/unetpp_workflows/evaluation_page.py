"""Draws one self-contained page of an evaluation; measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetpp.metrics import CalibrationError, Confusion, PrecisionRecall
from unetpp.native.support import WHOLE
from unetpp_workflows.evaluation import Evaluation, mean_iou
from unetpp_workflows.plots import Line, Row, curves, dot_rows
from unetpp_workflows.report import mean_over

if TYPE_CHECKING:
    from unetpp_workflows.cases import Case

_GROUPS = 24


def evaluation_page(evaluation: Evaluation, worst: Sequence[Case], best: Sequence[Case]) -> str:
    """Return the page as HTML; it loads nothing, and every text in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetpp_workflows"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    figures, confusions = evaluation.figures, evaluation.confusions()
    total = np.asarray(sum(confusions.values()), np.int64)
    groups = _groups(confusions)
    return environment.get_template("evaluation.html.j2").render(
        title=model_title(evaluation),
        lead=_lead(evaluation),
        score_name=score_name(evaluation),
        score=text(mean_iou(total)),
        warnings=_warnings(evaluation),
        classes=[_class_row(info, figures) for info in evaluation.classes],
        groups=len(confusions),
        objects=", ".join(f"{name.upper()} {text(value)}" for name, value in figures.get("objects", {}).items()),
        plots={
            "classes": _class_plot(evaluation, confusions),
            "groups": dot_rows(groups[:_GROUPS], x=score_name(evaluation), title="IoU of groups of images"),
            "precision": _precision_plot(evaluation),
            "reliability": _reliability_plot(evaluation),
        },
        more_groups=max(0, len(confusions) - len(groups)),
        ece=text(figures["ece"]),
        temperature=text(figures["temperature"]),
        matrix=_matrix(evaluation, total),
        cases=[
            {"title": "Worst images", "cases": worst},
            {"title": "Best images", "cases": best},
        ],
        table=_table(evaluation),
    )


def model_title(evaluation: Evaluation) -> str:
    """Return the model's name, with its version where it has one."""
    version = evaluation.model.get("version")
    return str(evaluation.model["name"]) + (f" version {version}" if version else "")


def score_name(evaluation: Evaluation) -> str:
    """Name the figure that models are compared by; see `mean_iou`."""
    if len(evaluation.classes) == 2:
        return f"IoU of {evaluation.classes[1]['name']}"
    return "mean IoU"


def text(value: Any) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def interval(figures: dict[str, Any], name: str) -> str:
    """Return the interval of a class's IoU; one group of images has none."""
    low, high = figures["iou_low"][name], figures["iou_high"][name]
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _lead(evaluation: Evaluation) -> str:
    data = evaluation.data
    images = f"{data['images']} images in {data['groups']} groups"
    return f"on {data['name']}, split {data['split']} · {images} · {evaluation.finished[:16].replace('T', ' ')} UTC"


def _warnings(evaluation: Evaluation) -> list[str]:
    data, shared = evaluation.data, evaluation.data["shared"]
    found = []
    if shared["training"]:
        found.append(f"{shared['training']} of {data['images']} images were in the model's training data: too good.")
    if shared["validation"]:
        found.append(f"The training chose its best step on {shared['validation']} of these images: slightly too good.")
    if data["within_group"]:
        found.append("Training and evaluation are parts of one group of images: elsewhere expect less.")
    if data["groups"] < 2:
        found.append("One group of images cannot say how groups differ: there are no intervals.")
    if evaluation.skipped:
        found.append(f"{len(evaluation.skipped)} image(s) are too large for boundary F1 and object figures.")
    return found


def _class_row(info: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    name = info["name"]
    rest = ("dice", "precision", "recall", "boundary_f1", "average_precision")
    values = [text(figures["iou"][name]), interval(figures, name), *(text(figures[key][name]) for key in rest)]
    return {"name": name, "color": info["color"], "figures": values}


def _class_plot(evaluation: Evaluation, confusions: dict[str, NDArray[np.int64]]) -> str:
    figures = evaluation.figures
    by_group = np.stack([Confusion.from_state(matrix).iou for matrix in confusions.values()])
    return dot_rows(
        [
            Row(
                info["name"],
                figures["iou"][info["name"]],
                figures["iou_low"][info["name"]],
                figures["iou_high"][info["name"]],
                by_group[:, index].tolist(),
                info["color"],
            )
            for index, info in enumerate(evaluation.classes)
        ],
        x="IoU",
        title="IoU of every class with its interval",
    )


def _groups(confusions: dict[str, NDArray[np.int64]]) -> list[Row]:
    """Return the groups from worst to best; of many only both ends."""
    rows = [Row(name, mean_iou(matrix)) for name, matrix in confusions.items()]
    rows = sorted((row for row in rows if row.value is not None and math.isfinite(row.value)), key=_value)
    return rows if len(rows) <= _GROUPS else rows[: _GROUPS // 2] + rows[-_GROUPS // 2 :]


def _value(row: Row) -> float:
    return row.value if row.value is not None else math.nan


def _precision_plot(evaluation: Evaluation) -> str:
    found = PrecisionRecall.from_state(np.array(evaluation.totals["curves"], np.int64))
    lines = [
        Line(list(zip(recall.tolist(), precision.tolist(), strict=True)), info["color"], info["name"])
        for info, recall, precision in zip(evaluation.classes, found.recall, found.precision, strict=True)
    ]
    return curves(lines, x="recall", y="precision", title="Precision against recall of every class")


def _reliability_plot(evaluation: Evaluation) -> str:
    found = CalibrationError.from_state(np.array(evaluation.totals["calibration"], np.int64))
    points = list(zip(found.confidence.tolist(), found.accuracy.tolist(), strict=True))
    pixels = found.counts[0]
    bins, most = len(pixels), max(1, int(pixels.sum()))
    bars = [(b / bins, (b + 1) / bins, float(pixels[b] / most)) for b in range(bins)]
    return curves(
        [Line([(0, 0), (1, 1)], (128, 128, 128), dashed=True), Line(points, dots=True)],
        x="confidence",
        y="share of right pixels",
        bars=bars,
        title="Share of right pixels against confidence",
    )


def _matrix(evaluation: Evaluation, total: NDArray[np.int64]) -> list[dict[str, Any]]:
    shares = total / np.maximum(1, total.sum(1, keepdims=True))
    return [
        {
            "name": info["name"],
            "cells": [{"share": f"{share:.1%}", "shade": f"{share * 0.6:.3f}"} for share in row],
        }
        for info, row in zip(evaluation.classes, shares, strict=True)
    ]


def orientations(evaluation: Evaluation) -> str:
    """Say over how many orientations probabilities were averaged, behind a comma; nothing where over none."""
    return "" if evaluation.tta == "none" else f", {mean_over(evaluation.tta)}"


def _table(evaluation: Evaluation) -> list[tuple[str, str]]:
    model, data, speed = evaluation.model, evaluation.data, evaluation.speed
    network = "by the native engine in" if evaluation.precision in WHOLE else "in plain torch,"
    peak = "not measured" if speed["peak_mb"] is None else f"{speed['peak_mb']:.0f} MB"
    return [
        ("model", str(model["uri"])),
        ("digest", str(model["digest"])[:16]),
        ("images", f"{data['name']}, split {data['split']}, fingerprint {data['fingerprint'][:16]}"),
        ("predicted", f"as whole images, {network} {evaluation.precision}{orientations(evaluation)}"),
        (
            "speed",
            f"{speed['mpx_per_second']:.2f} Mpx of computed pixels per second of processor time; {speed['engine']} "
            f"{speed['precision']} on {speed['device']}, one thread, tiles of {speed['tile']} px",
        ),
        ("memory", f"{peak} on top of the process, for such a tile"),
        ("software", ", ".join(f"{name} {version}" for name, version in evaluation.software.items())),
        ("key", evaluation.key[:16]),
    ]
