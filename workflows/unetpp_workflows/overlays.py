"""Draws validation samples beside their truth and prediction; knows one network and one source, records nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unetpp.durable import output_errors, write_file
from unetpp.geometry import Box
from unetpp_workflows.report import to_rgb

if TYPE_CHECKING:
    from unetpp.model import UNet, UNetPlusPlus
    from unetpp.train import Source
    from unetpp_workflows.recipe import Recipe
    from unetpp_workflows.training_data import TrainingData

_SIDE, _SAMPLES, _OPACITY = 256, 4, 0.55


def draw_overlays(network: UNetPlusPlus | UNet, data: TrainingData, recipe: Recipe, path: Path) -> Path:
    """Write one JPEG: a row per sample with the image, the truth and the prediction over it; returns its path.

    The samples are the same at every validation: of as many strata as there are, the block with most classes in it.

    Raises:
        OutputError: it cannot be written.
    """
    import torch
    from PIL import Image

    from unetpp.train.normalise import Normalise
    from unetpp.train.validate import decide

    norm = Normalise(data.mean, data.std, str(next(network.parameters()).device))
    # The background shows the picture as it is.
    colours = np.array([(np.nan,) * 3 if info.background else info.color for info in recipe.classes])
    source, rows = data.validation, []
    for image, box in chosen_boxes(source):
        crop = source.read(image, box)
        pixels = torch.from_numpy(np.ascontiguousarray(crop.pixels)).permute(2, 0, 1)[None].to(norm.device)
        with torch.no_grad():
            labels = decide(network.eval()(norm(pixels.float()))[0].float()).cpu().numpy()
        shown = to_rgb(crop.pixels, np.ones(crop.labels.shape, bool))
        panels = [shown, _overlay(shown, crop.labels, colours), _overlay(shown, labels, colours)]
        rows.append(np.concatenate([_padded(panel) for panel in panels], 1))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows, 0)).save(file, "JPEG", quality=88)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, file.getvalue())
    return path


def chosen_boxes(source: Source) -> list[tuple[int, Box]]:
    """Return up to four boxes (image, box) of at most 256 px that show much: one per stratum while they last."""
    counts = source.blocks.counts
    order = np.lexsort((-counts.sum(1), -(counts > 0).sum(1)))
    groups = [source.images[int(source.blocks.image[index])].stratum for index in order]
    first = [groups.index(group) for group in dict.fromkeys(groups)]
    rest = [position for position in range(len(order)) if position not in first]
    boxes = []
    for position in (first + rest)[:_SAMPLES]:
        index = int(order[position])
        image = int(source.blocks.image[index])
        block = Box(*map(int, source.blocks.box[index]))
        y0, x0 = block.y0 + max(0, block.height - _SIDE) // 2, block.x0 + max(0, block.width - _SIDE) // 2
        boxes.append((image, Box(y0, x0, min(y0 + _SIDE, block.y1), min(x0 + _SIDE, block.x1))))
    return boxes


def _overlay(shown: NDArray[np.uint8], labels: NDArray[np.uint8], colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    known = labels < len(colours)
    colour = colours[np.where(known, labels, 0)]
    mixed = np.where(np.isnan(colour), shown, shown * (1 - _OPACITY) + colour * _OPACITY)
    return np.where(known[..., None], mixed, shown * 0.4).astype(np.uint8)


def _padded(panel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the panel on a white square, with a thin white edge."""
    canvas = np.full((_SIDE + 4, _SIDE + 4, 3), 255, np.uint8)
    canvas[2 : 2 + panel.shape[0], 2 : 2 + panel.shape[1]] = panel
    return canvas
