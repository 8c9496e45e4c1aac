"""Turns fitted weights into a model package: which level, how good, how fast; knows no scheduler and no registry.

output/            the package at the level that is kept, with the card
output/full/       the package with every level, where a smaller one is kept
output/levels.json what each level scored and how fast it ran
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import write_file
from unetpp.model import UNet, UNetPlusPlus
from unetpp.package import ModelSpec, Package, save_package
from unetpp.profile import quantiles
from unetpp.span import Span
from unetpp.train.appearance import source_profiles
from unetpp.train.content import source_content
from unetpp.train.levels import LevelScore, score_levels, smallest_good
from unetpp.train.measure import measure
from unetpp.train.normalise import Normalise
from unetpp.train.precision import settled
from unetpp.train.validate import predict
from unetpp_workflows.figures import figures, per_class
from unetpp_workflows.model_card import model_card
from unetpp_workflows.recipe import Recipe, network
from unetpp_workflows.starting_point import StartingPoint, seen_content

if TYPE_CHECKING:
    from unetpp.train import TrainResult
    from unetpp_workflows.training_data import TrainingData

FULL, LEVELS = "full", "levels.json"
_BENCH_TILE, _BENCH_SECONDS = 512, 1.5


def write_package(
    recipe: Recipe,
    data: TrainingData,
    result: TrainResult,
    output: Path,
    *,
    start: StartingPoint | None,
    command: str,
    device: str,
) -> Package:
    """Score every level of the best weights, keep one, and write its package into `output`.

    Args:
        start: the model that training started from.
        command: what made it, for the card.
        device: where validation runs.
    """
    assert result.best is not None
    trained = network(recipe, len(data.bands))
    trained.load_state_dict(result.weights)
    trained.to(device).eval()
    norm = Normalise(data.mean, data.std, device)
    precision = settled(recipe.train.precision, device)
    levels: list[dict[str, Any]] = []
    kept: UNetPlusPlus | UNet = trained
    if isinstance(trained, UNetPlusPlus) and len(trained.head_convs) > 1:
        scores = score_levels(trained, data.validation, norm, precision=precision)
        level = smallest_good(scores, recipe.result.drop) if recipe.result.level == "auto" else recipe.result.level
        levels = [_row(found, level, trained, recipe, data) for found in scores]
        if level < trained.config.last:
            every = [{**row, "kept": row["level"] == trained.config.last} for row in levels]
            full = _spec(recipe, data, result, trained, norm, precision, every, start, command)
            save_package(output / FULL, trained, full, model_card(full, recipe.intended))
        kept = trained.prune(level)
    spec = _spec(recipe, data, result, kept, norm, precision, levels, start, command)
    write_file(output / LEVELS, (json.dumps(levels, indent=1) + "\n").encode())
    return save_package(output, kept, spec, model_card(spec, recipe.intended))


def _row(found: LevelScore, kept: int, network: UNetPlusPlus, recipe: Recipe, data: TrainingData) -> dict[str, Any]:
    """Return one level's figures with its speed on this machine's default engine; level 0 is the heads' mean."""
    names = [info.name for info in recipe.classes]
    return {
        "level": found.level or "mean",
        "kept": found.level == kept,
        "score": round(found.score, 4),
        "iou": per_class(names, found.iou),
        "parameters": found.parameters,
        "mpx_per_second": _speed(network.prune(found.level), recipe, data) if found.level else None,
    }


def _speed(network: UNetPlusPlus, recipe: Recipe, data: TrainingData) -> float:
    """Return million computed pixels per second of one worker with one thread."""
    from unetpp.engine.bench import bench

    with tempfile.TemporaryDirectory(prefix="unetpp-level-") as folder:
        package = save_package(Path(folder), network, _bare(recipe, data, network), "")
        return round(bench(package, tiles=[max(_BENCH_TILE, 2 * network.halo + network.multiple)],
                           seconds=_BENCH_SECONDS)[0].computed_mpx_s, 3)  # fmt: skip


def _bare(recipe: Recipe, data: TrainingData, network: UNetPlusPlus | UNet) -> ModelSpec:
    return ModelSpec(
        name=recipe.name,
        network=recipe.network.kind,
        architecture=network.config,
        classes=recipe.infos(),
        bands=data.bands,
        mean=data.mean,
        std=data.std,
        dtype=data.dtype,
        spacing=data.spacing,
    )


def _spec(
    recipe: Recipe,
    data: TrainingData,
    result: TrainResult,
    network: UNetPlusPlus | UNet,
    norm: Normalise,
    precision: str,
    levels: Sequence[dict[str, Any]],
    start: StartingPoint | None,
    command: str,
) -> ModelSpec:
    assert result.best is not None
    predictions = predict(network, data.validation, norm, precision=precision)
    found = measure(predictions, data.validation, max(2, network.config.classes))
    return dataclasses.replace(
        _bare(recipe, data, network),
        training={
            "source": recipe.source,
            "licence": recipe.licence,
            "limits": recipe.limits,
            "precision": precision,
            "training_images": len(data.training.images),
            "validation_images": len(data.validation.images),
            "validation": list(recipe.data.validation),
            "within_group": data.within_group,
            "training_fingerprint": data.training.fingerprint,
            "validation_fingerprint": data.validation.fingerprint,
            "training_content": seen_content(start, source_content(data.training), "training"),
            "validation_content": seen_content(start, source_content(data.validation), "validation"),
            "profile": quantiles(source_profiles(data.training, data.bands, Span.of(data.dtype, data.mean, data.std))),
            "start": None if start is None else start.facts(),
            "command": command,
            "steps": recipe.train.steps,
            "best_step": result.best.step,
            "seconds": round(sum(epoch.seconds for epoch in result.history)),
            "levels": list(levels),
        },
        metrics=figures([info.name for info in recipe.classes], found),
    )
