"""Reads a training recipe and runs it to a model package; knows TOML and the library's loop, not schedulers.

recipe.toml -> samples -> unetpp.train.fit -> model package + history.json + recipe.json
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unetpp.errors import ConfigError, DataError
from unetpp_workflows.config import apply_setting, read_toml, validate

if TYPE_CHECKING:
    from unetpp.package import Package
    from unetpp.train import Epoch, Sample, TrainResult

RECIPES = Path(__file__).parent / "recipes"
HISTORY, RESOLVED = "history.json", "recipe.json"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """Where labelled images lie; see `unetpp.train.data.DataConfig`."""

    images: str
    labels: str
    instances: bool = False
    label_map: dict[int, int] = Field(default_factory=dict)
    table: str | None = None
    key: str = "id"
    split: str = "split"
    group: str = "type"
    group_pattern: str = "(.*)"
    validation: tuple[str, ...] = ("val",)


class ClassSection(_Section):
    """One class, in the order of label indices; see `unetpp.package.ClassInfo`."""

    value: int = Field(ge=0, le=254)
    name: str
    color: tuple[int, int, int]
    background: bool = False


class NetworkSection(_Section):
    """The network's switches; see `unetpp.model.GridConfig`."""

    kind: Literal["unetplusplus", "unet"] = "unetplusplus"
    filters: tuple[int, ...] = (32, 64, 128, 256, 512)
    conv: Literal["pw_dw", "dw_pw", "standard"] = "pw_dw"
    norm: Literal["batch", "none"] = "batch"
    upsample: Literal["bilinear", "nearest", "deconv"] = "bilinear"
    deep_supervision: bool = True


class AugmentSection(_Section):
    """See `unetpp.train.config.AugmentConfig`."""

    scale: tuple[float, float] = (0.6, 1.6)
    rotate: float = 0.5
    gamma: float = 0.35
    gain: float = 0.25
    offset: float = 0.1
    tint: float = 0.1
    saturation: tuple[float, float] = (0.5, 1.5)
    blur: float = 0.2
    noise: float = 0.2
    noise_sigma: float = 0.05


class TrainSection(_Section):
    """See `unetpp.train.config.TrainConfig`."""

    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=8, ge=1)
    patch: int = Field(default=128, ge=16)
    rate: float = Field(default=2e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    decay: float = Field(default=1e-2, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.995, ge=0, lt=1)
    validate_every: int = Field(default=400, ge=1)
    balance: float = 1.0
    class_aware: float = Field(default=0.0, ge=0, le=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0
    threads: int = Field(default=0, ge=0)
    augment: AugmentSection = AugmentSection()


class Recipe(_Section):
    """One training: data, classes, network, schedule, and what the model card says about them."""

    name: str
    licence: str
    source: str
    intended: str
    limits: str
    data: DataSection
    classes: tuple[ClassSection, ...] = Field(min_length=2)
    network: NetworkSection = NetworkSection()
    train: TrainSection = TrainSection()


def recipe_names() -> list[str]:
    """List the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a bundled recipe by name, or a TOML file, with `section.key=value` overrides.

    Raises:
        ConfigError: there is no such recipe, or a key or value is not one this version knows.
    """
    path = Path(recipe)
    if not path.is_file():
        path = RECIPES / f"{recipe}.toml"
        if Path(str(recipe)).name != str(recipe) or not path.is_file():
            raise ConfigError(f"no recipe {str(recipe)!r}; give a TOML file or one of {', '.join(recipe_names())}")
    values = read_toml(path)
    for setting in overrides:
        apply_setting(values, setting)
    return validate(Recipe, values, source=path.name)


def train(
    recipe: str | Path,
    *,
    data: Path | None = None,
    output: Path,
    overrides: Iterable[str] = (),
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Package:
    """Train a recipe and write its model package into `output`; run again to continue or to load what is finished.

    Args:
        recipe: name of a bundled recipe, or a TOML file.
        data: folder that the recipe's paths start from; UNETPP_DATA when not given.
        output: made when missing; also holds checkpoint.pt, history.json and recipe.json.
        overrides: `section.key=value` settings.
        on_step: called with (step, steps, loss); on_epoch: with each validation.

    Raises:
        ConfigError: the recipe or an override is wrong. DataError: images and labels are missing or do not fit.
    """
    import torch

    from unetpp.train import fit
    from unetpp.train.data import statistics

    settings = tuple(overrides)
    config = load_recipe(recipe, settings)
    training, validation = _samples(config, _data_root(data))
    mean, std = statistics(training)
    train_config = _train_config(config)
    torch.manual_seed(train_config.seed)
    output.mkdir(parents=True, exist_ok=True)
    (output / RESOLVED).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    result = fit(
        _network(config),
        training,
        validation,
        train_config,
        mean=mean,
        std=std,
        folder=output,
        device="cuda" if torch.cuda.is_available() else "cpu",
        on_step=(lambda step, loss: on_step(step, train_config.steps, loss)) if on_step is not None else None,
        on_epoch=on_epoch,
    )
    history = [asdict(epoch) for epoch in result.history]
    (output / HISTORY).write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    command = " ".join(["unetpp train", str(recipe), "--data DATA --output", f"runs/{config.name}",
                        *(f"--set {setting}" for setting in settings)])  # fmt: skip
    return _package(config, result, training, validation, (mean, std), command, output)


def _data_root(data: Path | None) -> Path:
    root = data or (Path(os.environ["UNETPP_DATA"]) if os.environ.get("UNETPP_DATA") else None)
    if root is None:
        raise DataError("no data folder; give --data or set UNETPP_DATA")
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; give --data or set UNETPP_DATA")
    return root


def _samples(config: Recipe, root: Path) -> tuple[list[Sample], list[Sample]]:
    from unetpp.train.data import DataConfig, load_samples

    return load_samples(DataConfig(**config.data.model_dump()), root)


def _train_config(config: Recipe) -> Any:
    from unetpp.train.config import AugmentConfig, TrainConfig

    values = config.train.model_dump()
    return TrainConfig(**{**values, "augment": AugmentConfig(**values["augment"])})


def _architecture(config: Recipe) -> Any:
    from unetpp.model import GridConfig

    switches = config.network.model_dump(exclude={"kind"})
    return GridConfig(bands=3, classes=len(config.classes), **switches)


def _network(config: Recipe) -> Any:
    from unetpp.model import UNet, UNetPlusPlus

    return (UNetPlusPlus if config.network.kind == "unetplusplus" else UNet)(_architecture(config))


def _package(
    config: Recipe,
    result: TrainResult,
    training: list[Sample],
    validation: list[Sample],
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    command: str,
    output: Path,
) -> Package:
    import numpy as np

    from unetpp.metrics import Confusion
    from unetpp.package import ClassInfo, ModelSpec, save_package
    from unetpp.train.data import fingerprint
    from unetpp_workflows.model_card import model_card

    confusion = Confusion(len(result.confusion))
    confusion.matrix[:] = result.confusion
    names = [c.name for c in config.classes]

    def per_class(values: Any) -> dict[str, float | None]:
        """NaN (a class that does not occur) is not JSON: it becomes None."""
        return {n: None if math.isnan(v) else round(float(v), 4) for n, v in zip(names, values, strict=True)}

    network = _network(config)
    network.load_state_dict(result.weights)
    spec = ModelSpec(
        name=config.name,
        network=config.network.kind,
        architecture=_architecture(config),
        classes=tuple(ClassInfo(**c.model_dump()) for c in config.classes),
        bands=("red", "green", "blue"),
        mean=normalization[0],
        std=normalization[1],
        training={
            "source": config.source,
            "licence": config.licence,
            "limits": config.limits,
            "precision": config.train.precision,
            "training_images": len(training),
            "validation_images": len(validation),
            "validation": list(config.data.validation),
            "training_fingerprint": fingerprint(training),
            "validation_fingerprint": fingerprint(validation),
            "command": command,
            "steps": config.train.steps,
            "best_step": result.best.step,
            "seconds": round(sum(epoch.seconds for epoch in result.history)),
        },
        metrics={
            "iou": per_class(confusion.iou),
            "dice": per_class(confusion.dice),
            "precision": per_class(confusion.precision),
            "recall": per_class(confusion.recall),
            "mean_iou": round(float(np.nanmean(confusion.iou)), 4),
            "accuracy": round(confusion.accuracy, 4),
            "iou_by_group": {group: per_class(iou) for group, iou in result.best.groups.items()},
        },
    )
    return save_package(output, network, spec, model_card(spec, config.intended))
