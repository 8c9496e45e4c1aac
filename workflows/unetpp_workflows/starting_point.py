"""What a training starts from where that is another model: its switches and weights; trains nothing.

output/start/    a copy of that model's package, made once: an alias may mean another version when the training is rerun
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unetpp.durable import write_file
from unetpp.errors import DataError
from unetpp.package import CARD, SPEC, WEIGHTS, Package, load_package
from unetpp.train.content import known_images
from unetpp_workflows.recipe import NetworkSection, Recipe, network
from unetpp_workflows.registry import resolve
from unetpp_workflows.training_data import TrainingData, open_data

if TYPE_CHECKING:
    from unetpp.model import UNet, UNetPlusPlus

START, ORIGIN = "start", "origin.json"
_HEADS = "head_convs."


@dataclass(frozen=True)
class StartingPoint:
    """A model that a training goes on from.

    Attributes:
        package: its copy in the training's output.
        uri: what it was called when it was copied, with the version that an alias meant.
    """

    package: Package
    uri: str

    def facts(self) -> dict[str, str]:
        """Return what the new model's package says about it."""
        return {"name": self.package.spec.name, "uri": self.uri, "digest": self.package.digest}

    def shape(self) -> str:
        """Return the network's switches in words."""
        spec, switches = self.package.spec, self.package.spec.architecture
        pruned = f" kept to level {switches.last}" if switches.last < switches.depth else ""
        return f"{spec.network} {switches.conv}, filters {list(switches.filters)}{pruned}"

    def keeps_heads(self, recipe: Recipe) -> bool:
        """Say whether its heads answer the recipe's question: the same classes, in the same order."""
        spec = self.package.spec
        names = [info.name for info in spec.classes]
        return names == [section.name for section in recipe.classes] and spec.architecture.classes == len(names)


def starting_point(recipe: Recipe, output: Path) -> StartingPoint | None:
    """Return what the recipe's training in `output` starts from; None for random weights."""
    return None if recipe.network.start is None else _kept(output)


def with_start(recipe: Recipe, output: Path, *, tracking_uri: str | None = None) -> Recipe:
    """Copy the model that `network.start` names into `output`, unless it is there; return the recipe with its switches.

    They replace the recipe's own, which say what to build from random weights: one recipe does for the first training
    and for those that go on from its champion.

    Raises:
        ModelNotFoundError, ModelPackageError: there is no such model.
    """
    if recipe.network.start is None:
        return recipe
    start = _kept(output) or _copy(recipe.network.start, output, tracking_uri)
    spec = start.package.spec
    known = {"kind": spec.network, **dataclasses.asdict(spec.architecture)}
    switches = {name: known[name] for name in NetworkSection.model_fields if name != "start"}
    return recipe.model_copy(update={"network": NetworkSection(start=recipe.network.start, **switches)})


def open_started(store: Path, start: StartingPoint | None) -> TrainingData:
    """Open a training store as the network will see it: normalised as the model that it starts from was.

    Raises:
        StoreError: it is no finished store.
        DataError: its pixels are not what that model takes.
    """
    if start is None:
        return open_data(store)
    spec = start.package.spec
    data = open_data(store, spec.mean)
    for what, ours, theirs in (("bands", data.bands, spec.bands), ("samples", data.dtype, spec.dtype)):
        if ours != theirs:
            raise DataError(f"{store} has {what} {_shown(ours)}, but {start.uri} takes {_shown(theirs)}; start anew")
    return dataclasses.replace(data, mean=spec.mean, std=spec.std)


def check_unseen(start: StartingPoint, data: TrainingData) -> bool:
    """Say whether it is known that the model was not trained on validation images.

    Raises:
        DataError: it was trained on some of them: figures on those would be too good.
    """
    seen = start.package.spec.training.get("training_content")
    if seen is None:
        return False
    shared = known_images(data.validation, seen)
    if shared:
        raise DataError(
            f"{shared} of {len(data.validation.images)} validation images were trained on by {start.uri}, so figures "
            "on them would be too good; keep them in training, or start from random weights"
        )
    return True


def seen_content(
    start: StartingPoint | None, own: list[str], role: Literal["training", "validation"]
) -> list[str] | None:
    """Return the digests of all images that the new weights were trained on, or chosen on; None where the older model
    does not tell."""
    if start is None:
        return own
    seen = start.package.spec.training.get(f"{role}_content")
    return None if seen is None else sorted({*own, *seen})


def build(recipe: Recipe, bands: int, start: StartingPoint | None) -> UNetPlusPlus | UNet:
    """Return the network before its first step, in training mode; what has no older weights is drawn from torch's
    global generator.

    Args:
        recipe: with the switches of `start`, see `with_start`.
        start: its weights are taken, those of its heads only where it had the same classes.
    """
    fresh = network(recipe, bands)
    if start is not None:
        weights: dict[str, Any] = dict(start.package.load_model().state_dict())
        if not start.keeps_heads(recipe):
            weights |= {name: value for name, value in fresh.state_dict().items() if name.startswith(_HEADS)}
        fresh.load_state_dict(weights)
    return fresh


def _kept(output: Path) -> StartingPoint | None:
    folder = output / START
    if not (folder / ORIGIN).is_file():
        return None
    return StartingPoint(load_package(folder), json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["uri"])


def _copy(reference: str, output: Path, tracking_uri: str | None) -> StartingPoint:
    found = resolve(reference, tracking_uri=tracking_uri)
    folder = output / START
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, SPEC, CARD):
        if (found.folder / name).is_file():
            shutil.copyfile(found.folder / name, folder / name)
    # Written last: without it the copy is not complete, and is made again.
    write_file(folder / ORIGIN, (json.dumps({"uri": found.uri}) + "\n").encode())
    return StartingPoint(load_package(folder), found.uri)


def _shown(value: tuple[str, ...] | str) -> str:
    return value if isinstance(value, str) else ", ".join(value)
