"""Predicts validation images at full size and counts; knows networks and sources, not optimisers."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetpp.allocation import keep_freed_memory
from unetpp.geometry import Box
from unetpp.metrics import Confusion
from unetpp.model import UNet, UNetPlusPlus
from unetpp.model.orientations import Tta
from unetpp.model.turned import averaged
from unetpp.tiling import cut, make_plan
from unetpp.train.normalise import Normalise
from unetpp.train.ranks import Ranks
from unetpp.train.source import Crop, Source


@dataclass(frozen=True)
class Prediction:
    """One tile of one image.

    Attributes:
        image: index of the source's image.
        box: where it lies.
        logits: (K, h, w) float32 of every head asked for, deepest last.
        truth: pixels and labels of the box.
    """

    image: int
    box: Box
    logits: tuple[Tensor, ...]
    truth: Crop


def predict(
    network: UNetPlusPlus | UNet,
    source: Source,
    norm: Normalise,
    *,
    precision: str,
    every_head: bool = False,
    tta: Tta = "none",
    ranks: Ranks | None = None,
    skip: Container[int] = (),
) -> Iterator[Prediction]:
    """Yield the labelled parts of this worker's share of the images, exactly as whole images would be predicted.

    Args:
        network: in eval mode afterwards, on the norm's device.
        precision: "bf16" (autocast) or "fp32".
        every_head: yield all heads' logits, not only the deepest's.
        tta: see `unetpp.model.turned`; logits are then of mean probabilities.
        ranks: the workers that share the images.
        skip: indices of images to leave out.
    """
    network.eval()
    device = torch.device(norm.device)
    if device.type == "cpu":
        keep_freed_memory()

    def forward(pixels: Tensor) -> Tensor:
        return torch.stack(network.heads(pixels) if every_head else (network(pixels),))

    @torch.no_grad()
    def run(pixels: NDArray[Any]) -> list[Tensor]:
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return [head[0] for head in averaged(forward, norm(batch.float()), tta)]

    return predicted(run, source, network.halo, network.multiple, ranks=ranks, skip=skip)


def predicted(
    run: Callable[[NDArray[Any]], Iterable[Tensor]],
    source: Source,
    halo: int,
    multiple: int,
    *,
    ranks: Ranks | None = None,
    skip: Container[int] = (),
) -> Iterator[Prediction]:
    """Yield what `predict` does, of any network.

    Args:
        run: returns (K, H, W) logits per head for raw pixels (H, W, C).
        halo, multiple: of the network.
    """
    for index in (ranks or Ranks()).share(len(source.images)):
        if index in skip:
            continue
        image = source.images[index]
        labelled = [Box(*map(int, box)) for box in source.blocks.box[source.blocks.image == index]]
        plan = make_plan(image.height, image.width, halo=halo, multiple=multiple)
        for tile in (tile for shard in plan.shards() for tile in plan.tiles(shard)):
            if not any(tile.write_box.intersect(box).area for box in labelled):
                continue
            inside = tile.read_box.clip(image.height, image.width)
            crop = source.read(index, inside)
            pixels = cut(crop.pixels, inside, tile.read_box, image.height, image.width)
            written = tile.write_box.slices(tile.read_box)
            heads = run(np.ascontiguousarray(pixels))
            logits = tuple(head[(slice(None), *written)].float() for head in heads)
            truth = tile.write_box.slices(inside)
            objects = None if crop.objects is None else crop.objects[truth]
            yield Prediction(index, tile.write_box, logits, Crop(crop.pixels[truth], crop.labels[truth], objects))


def decide(logits: Tensor) -> Tensor:
    """Return class indices (h, w) uint8 of logits (K, h, w): the largest, or foreground where one logit is > 0."""
    return (logits[0] > 0).byte() if len(logits) == 1 else logits.argmax(0).byte()


def evaluate(
    network: UNetPlusPlus | UNet, source: Source, norm: Normalise, *, precision: str, ranks: Ranks | None = None
) -> tuple[Confusion, dict[str, Confusion]]:
    """Return the confusion over all images of all workers, and per stratum."""
    ranks = ranks or Ranks()
    classes = max(2, network.config.classes)
    names = sorted({image.stratum for image in source.images})
    groups = {name: Confusion(classes) for name in names}
    for found in predict(network, source, norm, precision=precision, ranks=ranks):
        labels = decide(found.logits[-1]).cpu().numpy()
        groups[source.images[found.image].stratum].update(found.truth.labels, labels)
    matrices = ranks.sum(np.stack([groups[name].matrix for name in names]), norm.device)
    total = Confusion(classes)
    for name, matrix in zip(names, matrices, strict=True):
        groups[name].matrix[:] = matrix.astype(np.int64)
        total.merge(groups[name])
    return total, groups
