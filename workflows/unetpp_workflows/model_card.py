"""Writes a model's card for people from its specification, and says what a card lacks; measures nothing."""

from __future__ import annotations

import re
from typing import Any

from unetpp.package import ModelSpec


def model_card(spec: ModelSpec, intended: str) -> str:
    """Return the Markdown of MODEL_CARD.md; every figure in it is one of `spec`."""
    training, metrics = spec.training, spec.metrics
    spacing = str(spec.spacing) if spec.spacing else "not declared: the training images have no pixel size"
    return "\n".join(
        [
            f"# {spec.name}",
            "",
            f"**Use.** {intended} For research; not a medical device, not validated for diagnosis.",
            "",
            f"**Data.** {training['source']}. Licence: {training['licence']}. {training['training_images']} images for "
            f"training, {training['validation_images']} for validation ({', '.join(training['validation'])}).",
            "",
            f"**Network.** {spec.network}, `conv={spec.architecture.conv}`, filters {list(spec.architecture.filters)}, "
            f"bands {', '.join(spec.bands)}. Pixel spacing: {spacing}.",
            "",
            f"**Made by** `{training['command']}` in {training['seconds'] / 60:.0f} minutes; the weights are the "
            f"running average at step {training['best_step']} of {training['steps']}, the best of all validations.",
            "",
            *_start(training),
            f"**Limits.** {training['limits']}",
            "",
            f"**Validation**, whole images at full size in {training['precision']}, pixels pooled over all images:",
            "",
            "| class | IoU | 95% interval | Dice | precision | recall | boundary F1 (2 px) |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(_class_row(c.name, metrics) for c in spec.classes),
            "",
            f"Intervals by bootstrap over {metrics.get('groups', 'all')} groups of images. Pixel accuracy "
            f"{_figure(metrics['accuracy'])}, mean IoU {_figure(metrics['mean_iou'])}; expected calibration error "
            f"{_figure(metrics.get('ece'))}, best temperature {_figure(metrics.get('temperature'))}.",
            *_objects(metrics),
            *_levels(training.get("levels", [])),
            *_within(training),
            "",
            "IoU by group of images:",
            "",
            "| group | " + " | ".join(c.name for c in spec.classes) + " |",
            "|---|" + "--:|" * len(spec.classes),
            *(
                f"| {group} | " + " | ".join(_figure(values[c.name]) for c in spec.classes) + " |"
                for group, values in sorted(metrics["iou_by_group"].items())
            ),
            "",
            "The best step was chosen on these same validation images, so the figures are slightly optimistic. They "
            "say nothing about images of another kind.",
            "",
        ]
    )


def missing_parts(spec: ModelSpec, card: str) -> list[str]:
    """Name what a reader needs and does not find: facts of the package, and parts of the card, under any heading."""
    facts = ("source", "licence", "limits", "training_fingerprint")
    found = [f"model.json: training.{name}" for name in facts if not str(spec.training.get(name) or "").strip()]
    if not spec.metrics:
        found.append("model.json: metrics")
    heading = r"(?im)(^#+.*|\*\*[^*\n]*)\b{}\b"
    return found + [f"card: {part}" for part in ("use", "data", "limits") if not re.search(heading.format(part), card)]


def _start(training: dict[str, Any]) -> list[str]:
    start = training.get("start")
    return [f"**Started from** {start['uri']}, digest `{start['digest'][:16]}`.", ""] if start else []


def _within(training: dict[str, Any]) -> list[str]:
    if not training.get("within_group"):
        return []
    return ["", "**Validation is another part of the training images**, behind a guard band: elsewhere expect less."]


def _class_row(name: str, metrics: dict[str, Any]) -> str:
    low, high = (_figure(metrics.get(bound, {}).get(name)) for bound in ("iou_low", "iou_high"))
    rest = (_figure(metrics.get(m, {}).get(name)) for m in ("dice", "precision", "recall", "boundary_f1"))
    return f"| {name} | {_figure(metrics['iou'][name])} | {low} to {high} | {' | '.join(rest)} |"


def _objects(metrics: dict[str, Any]) -> list[str]:
    found = metrics.get("objects")
    if not found:
        return []
    return [
        "",
        "Objects, split by a watershed: "
        + ", ".join(f"{name.upper()} {_figure(found[name])}" for name in ("pq", "sq", "f1", "aji"))
        + " (panoptic quality, segmentation quality, F1 at IoU 0.5, aggregated Jaccard index).",
    ]


def _levels(levels: list[dict[str, Any]]) -> list[str]:
    """Say what each head scored and which one this package is."""
    if not levels:
        return []
    rows = ["", "| level | score | M parameters | Mpx/s, 1 thread | |", "|---|--:|--:|--:|---|"]
    for row in levels:
        kept = "this package" if row["kept"] else ""
        rows.append(
            f"| {row['level']} | {_figure(row['score'])} | {row['parameters'] / 1e6:.2f} | "
            f"{_figure(row['mpx_per_second'])} | {kept} |"
        )
    return rows


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
