"""A training recipe: what it says and how it is read; knows TOML, trains nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unetpp.errors import ConfigError
from unetpp.losses import LossConfig
from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.train.config import AugmentConfig, TrainConfig
from unetpp_workflows.config import apply_setting, read_toml, validate
from unetpp_workflows.prepare.dataset import Dataset

RECIPES = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DrawnSection(_Section):
    """Slides that unetpp draws itself, with known nuclei, so that a recipe runs anywhere; see `unetpp.drawing`.

    Attributes:
        slides: how many; each is a group.
        side: of a slide in pixels, a multiple of 512 from 1024 on.
    """

    slides: int = Field(ge=2)
    side: int = Field(default=1024, ge=1024, multiple_of=512)


class NetworkSection(_Section):
    """The network's switches, see `unetpp.model.GridConfig`, and the model whose weights it starts from.

    Attributes:
        start: a model reference as `unetpp segment --model` takes it; its switches are then taken too.
    """

    start: str | None = None
    kind: Literal["unetplusplus", "unet"] = "unetplusplus"
    filters: tuple[int, ...] = (32, 64, 128, 256, 512)
    conv: Literal["pw_dw", "dw_pw", "standard"] = "pw_dw"
    norm: Literal["batch", "none"] = "batch"
    upsample: Literal["bilinear", "nearest", "deconv"] = "bilinear"
    deep_supervision: bool = True
    level: int | None = None


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class LossSection(LossConfig):
    """The library's own numbers, refusing keys that it does not know."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, kw_only=True)
class AugmentSection(AugmentConfig):
    """The library's own numbers, refusing keys that it does not know."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, kw_only=True)
class TrainSection(TrainConfig):
    """The library's own numbers, refusing keys that it does not know."""

    __pydantic_config__ = _STRICT
    loss: LossSection = field(default_factory=LossSection)
    augment: AugmentSection = field(default_factory=AugmentSection)


class ResultSection(_Section):
    """What becomes of the trained grid.

    Attributes:
        level: "auto" keeps the smallest level whose score is at most `drop` below the best; a number keeps that one.
        drop: in points of IoU (0.5 is half a percent point).
    """

    level: Literal["auto"] | int = "auto"
    drop: float = Field(default=0.5, ge=0)


class Recipe(Dataset):
    """One training: data, classes, network, schedule, and what the model card says about them."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    licence: str
    source: str
    intended: str
    limits: str
    drawn: DrawnSection | None = None
    network: NetworkSection = NetworkSection()
    train: TrainSection = TrainSection()
    result: ResultSection = ResultSection()

    @model_validator(mode="after")
    def _loss_fits_classes(self) -> Recipe:
        loss, count = self.train.loss, len(self.classes)
        weights, thin = loss.class_weights, loss.cldice_classes
        if weights is not None and len(weights) != count:
            raise ValueError(f"train.loss.class_weights has {len(weights)} numbers: give {count}, one for each class")
        if (weights is not None or loss.touching) and not {"ce", "focal"} & {name for name, _ in loss.terms}:
            raise ValueError(
                "train.loss: class_weights and touching weigh pixels in ce and focal; add one of these terms"
            )
        if thin is not None and not all(0 <= index < count for index in thin):
            raise ValueError(f"train.loss.cldice_classes = {list(thin)}: give indices of classes, 0 to {count - 1}")
        return self


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


def architecture(recipe: Recipe, bands: int) -> GridConfig:
    """Return the network's switches; two classes whose first is background could be one logit, but always get two."""
    return GridConfig(bands=bands, classes=len(recipe.classes), **recipe.network.model_dump(exclude={"kind", "start"}))


def network(recipe: Recipe, bands: int) -> UNetPlusPlus | UNet:
    """Build the untrained network; its weights are drawn from torch's global generator."""
    return (UNetPlusPlus if recipe.network.kind == "unetplusplus" else UNet)(architecture(recipe, bands))
