"""A training recipe: what it says and how it is read; knows TOML, trains nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unetpp.errors import ConfigError
from unetpp.losses import LossConfig
from unetpp.model import GridConfig, UNet, UNetPlusPlus, halo
from unetpp.train.config import AugmentConfig, TrainConfig
from unetpp.train.preconditions import check_patch
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

    start: str | None = Field(default=None, min_length=1)
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
        weights, thin, terms = loss.class_weights, loss.cldice_classes, {name for name, _ in loss.terms}
        if weights is not None and len(weights) != count:
            raise ValueError(f"train.loss.class_weights has {len(weights)} numbers: give {count}, one for each class")
        if (weights is not None or loss.touching) and not {"ce", "focal"} & terms:
            raise ValueError(
                "train.loss: class_weights and touching weigh pixels in ce and focal; add one of these terms"
            )
        for name, there, what in (
            ("touching_radius", loss.touching > 0, "touching = 0 makes no use of it; give touching a weight"),
            ("focal_gamma", "focal" in terms, "it is of the term focal; add that"),
            ("tversky", "tversky" in terms, "it is of the term tversky; add that"),
            ("cldice_steps", "cldice" in terms, "it is of the term cldice; add that"),
            ("cldice_classes", "cldice" in terms, "it is of the term cldice; add that"),
        ):
            if not there and getattr(loss, name) != getattr(LossConfig, name):
                raise ValueError(f"train.loss.{name} = {getattr(loss, name)}: {what}, or leave it out")
        if loss.touching and not self.data.instances:
            raise ValueError(
                f"train.loss.touching = {loss.touching} needs labels that tell objects apart; set it to 0, or set "
                "data.instances = true"
            )
        if thin is not None and not all(0 <= index < count for index in thin):
            raise ValueError(f"train.loss.cldice_classes = {list(thin)}: give indices of classes, 0 to {count - 1}")
        return self

    @model_validator(mode="after")
    def _can_be_trained(self) -> Recipe:
        if self.network.start is None:
            check_network(self)
        if self.data.shares and "val" not in self.data.shares:
            raise ValueError(
                "data.shares has no val: training chooses the best weights by images of it; give it a share"
            )
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


def check_network(recipe: Recipe) -> None:
    """Raise `ConfigError` for a network that cannot be built, or not be trained as the recipe says on any images.

    Better known before data is prepared. Where `network.start` is given, only once the switches are those of that
    model; see `with_start`.
    """
    level, switches, guard = recipe.result.level, architecture(recipe, 3), recipe.data.guard
    if recipe.network.kind == "unet" and switches.last != switches.depth:
        raise ConfigError(
            f"network.level = {switches.last}: a U-Net has one head, at level {switches.depth}; leave it out"
        )
    heads = range(1 if switches.deep_supervision else switches.last, switches.last + 1)
    if level != "auto" and (recipe.network.kind == "unet" or level not in heads):
        known = "this network has one head" if len(heads) == 1 else f"this network has heads 1 to {switches.last}"
        raise ConfigError(f"result.level = {level}: {known}; give one of them, or auto")
    check_patch(switches, recipe.train)
    if 0 < guard < halo(switches):
        raise ConfigError(
            f"data.guard = {guard}: the network sees {halo(switches)} px around a pixel; give at least as many"
        )


def network(recipe: Recipe, bands: int) -> UNetPlusPlus | UNet:
    """Build the untrained network; its weights are drawn from torch's global generator."""
    return (UNetPlusPlus if recipe.network.kind == "unetplusplus" else UNet)(architecture(recipe, bands))
