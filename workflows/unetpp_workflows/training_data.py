"""Opens what a recipe trains on, and prepares it first where that has not been done; knows folders, not networks.

output/data.zarr    the training store, unless another one is named: made once, then only read
output/drawn/       slides that unetpp drew, for recipes that have no data
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from unetpp.errors import DataError
from unetpp.geometry import Spacing
from unetpp.train import Source
from unetpp.train.store import PatchSource, PatchStore
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.recipe import DrawnSection, Recipe

STORE, DRAWN = "data.zarr", "drawn"


@dataclass(frozen=True)
class TrainingData:
    """Sources and what the model package says about them; `within_group`: splits share groups, `guard` pixels apart.

    `classes` are names, in the order of label indices.
    """

    training: Source
    validation: PatchSource
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Literal["uint8", "uint16", "float32"]
    spacing: Spacing | None
    within_group: bool
    guard: int


def open_data(store: Path, mean: tuple[float, ...] | None = None) -> TrainingData:
    """Open a finished training store, Zarr or exported; raises `StoreError` where it is none.

    Args:
        mean: what the network subtracts, per band; the store's own when not given.
    """
    found = PatchStore.open(store)
    if mean is not None and len(mean) == len(found.mean):
        found = found.filled(mean)
    return TrainingData(
        found.source("train"),
        found.source("val"),
        tuple(info.name for info in found.classes),
        found.bands,
        found.mean,
        found.std,
        cast(Literal["uint8", "uint16", "float32"], found.dtype),
        found.spacing,
        found.within_group,
        found.guard,
    )


def check_surrounded(images: PatchSource, store: Path, reach: int) -> None:
    """Raise `DataError` where a network that sees `reach` pixels around a pixel would see pixels that are not stored.

    Whole images hold others there, so figures would not be those of whole images.
    """
    if not images.surrounded(reach):
        raise DataError(
            f"{store} lacks pixels around labels: the network sees {reach} px around a pixel; prepare it anew with "
            f"data.context = {-(-reach // images.side)}"
        )


def prepared_store(
    recipe: Recipe, data: Path | None, output: Path, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Return the recipe's training store in `output`, prepared now unless it is there.

    Args:
        data: folder that the recipe's paths start from; UNETPP_DATA when not given.

    Raises:
        DataError: no data folder, or labels that do not fit their images.
        Also what `prepare` raises.
    """
    from unetpp_workflows.prepare.build import discard_work, prepare
    from unetpp_workflows.prepare.page import page_path, write_page

    root = _draw(recipe.drawn, output / DRAWN) if recipe.drawn else data_root(data)
    dataset = Dataset.model_validate({"name": recipe.name, "data": recipe.data, "classes": recipe.classes})
    prepared = prepare(dataset, root, output / STORE, progress=progress)
    if prepared.errors:
        more = f" (and {len(prepared.errors) - 1} more)" if len(prepared.errors) > 1 else ""
        first = prepared.errors[0]
        raise DataError(f"{first.where + ': ' if first.where else ''}{first.what}{more}; `unetpp prepare` lists all")
    if prepared.fresh or not page_path(prepared.store).is_file():
        write_page(prepared)
    discard_work(prepared.store)
    return prepared.store


def data_root(data: Path | None) -> Path:
    """Return the folder that a recipe's paths start from: the given one, or UNETPP_DATA."""
    root = data or (Path(os.environ["UNETPP_DATA"]) if os.environ.get("UNETPP_DATA") else None)
    if root is None:
        raise DataError("no data folder; give --data or set UNETPP_DATA")
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; give --data or set UNETPP_DATA")
    return root


def _draw(drawn: DrawnSection, folder: Path) -> Path:
    """Draw what is not there yet; slide k is drawn from seed k."""
    from unetpp.drawing.slide import draw_slide

    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(drawn.slides):
        slide, truth = folder / "images" / f"drawn_{seed}.tif", folder / "labels" / f"drawn_{seed}.tif"
        if not slide.is_file():
            draw_slide(slide, truth, side=drawn.side, seed=seed)
    return folder
