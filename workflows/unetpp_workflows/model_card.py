"""Writes a model's card for people from its specification; measures nothing."""

from __future__ import annotations

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
            f"**Limits.** {training['limits']}",
            "",
            f"**Validation**, whole images at full size in {training['precision']}, pixels pooled over all images:",
            "",
            "| class | IoU | Dice | precision | recall |",
            "|---|--:|--:|--:|--:|",
            *(
                f"| {c.name} | "
                + " | ".join(_figure(metrics[m][c.name]) for m in ("iou", "dice", "precision", "recall"))
                + " |"
                for c in spec.classes
            ),
            "",
            f"Pixel accuracy {_figure(metrics['accuracy'])}, mean IoU {_figure(metrics['mean_iou'])}.",
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


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
