"""Finds the images that a model did worst and best on and draws them; knows one model and one source, records nothing.

Each picture shows a place of at most 256 px: of the worst images where most pixels are wrong, of the best where most
are labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetpp.engine import choose_engine
from unetpp.geometry import Box
from unetpp.model import halo
from unetpp.model.turned import averaged
from unetpp.native.support import WHOLE
from unetpp.tiling import cut
from unetpp.train.validate import decide
from unetpp_workflows.evaluation import Evaluation, EvaluationData, mean_iou
from unetpp_workflows.prepare.page import jpeg, overlay
from unetpp_workflows.report import to_rgb

if TYPE_CHECKING:
    from unetpp.package import Package

SIDE, EACH, _LOOKED = 256, 4, 12
Predict = Callable[[NDArray[Any]], NDArray[np.float32]]
"""(H, W, C) raw pixels -> (K, H, W) logits."""


@dataclass(frozen=True)
class Case:
    """One place in one image: four JPEG data URIs, and the image's figure."""

    name: str
    group: str
    iou: float
    place: str
    picture: str
    truth: str
    prediction: str
    errors: str


def draw_cases(evaluation: Evaluation, package: Package, data: EvaluationData) -> tuple[list[Case], list[Case]]:
    """Return the worst images, worst first, and the best, best first: up to four each, none in both."""
    figures = [(mean_iou(np.array(row["confusion"])), row) for row in evaluation.images]
    known = sorted((found for found in figures if np.isfinite(found[0])), key=lambda found: found[0])
    half = min(EACH, (len(known) + 1) // 2)
    worst, best = known[:half], known[::-1][: min(EACH, len(known) - half)]
    painter = _Painter(package, data, _network(package, evaluation))
    return [painter.case(iou, row, worst=True) for iou, row in worst], [
        painter.case(iou, row, worst=False) for iou, row in best
    ]


def _network(package: Package, evaluation: Evaluation) -> Predict:
    """Return what the evaluation asked for logits."""
    if evaluation.precision in WHOLE:
        return choose_engine(package, precision=evaluation.precision, tta=evaluation.tta).logits
    network = package.load_model()
    mean, std = (torch.tensor(value)[:, None, None] for value in (package.spec.mean, package.spec.std))

    def predict(pixels: NDArray[Any]) -> NDArray[np.float32]:
        x = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=evaluation.precision == "bf16"):
            return averaged(network, ((x - mean) / std)[None], evaluation.tta)[0].float().numpy()

    return predict


class _Painter:
    def __init__(self, package: Package, data: EvaluationData, predict: Predict) -> None:
        self._data, self._spec, self._network = data.seen_by(package.spec), package.spec, predict

    def case(self, iou: float, row: dict[str, Any], *, worst: bool) -> Case:
        source, index = self._data.source, int(row["index"])
        blocks = source.blocks
        mine = np.flatnonzero(blocks.image == index)
        fullest = mine[np.argsort(-blocks.counts[mine].sum(1), kind="stable")][: _LOOKED if worst else 1]
        boxes = [_centre(Box(*map(int, blocks.box[block]))) for block in fullest]
        labels = [self._predict(index, box) for box in boxes]
        crops = [source.read(index, box) for box in boxes]
        wrong = [int(((p != c.labels) & (c.labels != 255)).sum()) for p, c in zip(labels, crops, strict=True)]
        chosen = int(np.argmax(wrong)) if worst else 0
        box, crop, found = boxes[chosen], crops[chosen], labels[chosen]
        rgb = to_rgb(crop.pixels, np.ones(crop.labels.shape, bool))
        colors = [info.color for info in self._spec.classes]
        plain = [info.background for info in self._spec.classes]
        return Case(
            name=str(row["name"]),
            group=str(row["group"]),
            iou=iou,
            place=f"x {box.x0}, y {box.y0}",
            picture=jpeg(rgb),
            truth=jpeg(overlay(rgb, crop.labels, colors, plain)),
            prediction=jpeg(overlay(rgb, found, colors, plain)),
            errors=jpeg(_errors(rgb, crop.labels, found)),
        )

    def _predict(self, index: int, box: Box) -> NDArray[np.uint8]:
        """Return the labels of a box as whole-image prediction gives them: it is read with its halo."""
        config, image = self._spec.architecture, self._data.source.images[index]
        step, around = config.multiple, halo(config)
        ends = [(-(-size // step) * step) for size in (image.height, image.width)]
        read = Box(
            max(0, box.y0 - around) // step * step,
            max(0, box.x0 - around) // step * step,
            min(ends[0], -(-(box.y1 + around) // step) * step),
            min(ends[1], -(-(box.x1 + around) // step) * step),
        )
        inside = read.clip(image.height, image.width)
        pixels = cut(self._data.source.read(index, inside).pixels, inside, read, image.height, image.width)
        labels: NDArray[np.uint8] = decide(torch.from_numpy(self._network(pixels))).numpy()[box.slices(read)]
        return labels


def _centre(block: Box) -> Box:
    y0, x0 = (block.y0 + max(0, block.height - SIDE) // 2, block.x0 + max(0, block.width - SIDE) // 2)
    return Box(y0, x0, min(y0 + SIDE, block.y1), min(x0 + SIDE, block.x1))


def _errors(
    rgb: NDArray[np.uint8], truth: NDArray[np.uint8], found: NDArray[np.uint8], color: Sequence[int] = (230, 30, 90)
) -> NDArray[np.uint8]:
    """Return a grey picture with wrong pixels coloured; pixels without a label are darker."""
    grey = np.repeat(rgb.mean(-1, keepdims=True), 3, -1) * 0.6 + 80
    grey[truth == 255] *= 0.5
    grey[(truth != found) & (truth != 255)] = color
    result: NDArray[np.uint8] = grey.clip(0, 255).astype(np.uint8)
    return result
