"""Makes a model package of other people's weights; knows what a package must say, not how the weights are named."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

from unetpp.errors import ConfigError
from unetpp.foreign import from_reimplementation, read_state
from unetpp.geometry import Spacing
from unetpp.package import ClassInfo, ModelSpec, Package, save_package


def import_weights(
    weights: Path,
    *,
    name: str,
    classes: Sequence[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    output: Path,
    spacing: str | None = None,
) -> Package:
    """Write a package of a state dict of the usual UNet++ re-implementation; see `unetpp.foreign`.

    Args:
        classes: names in the order of the logits, the background first.
        mean, std: per band, in raw sample units; what the training code normalised with, times 255 where it did so
            after division.
        spacing: pixel size it was trained at, like "0.25um".

    Raises:
        ModelPackageError: the weights are of another network, are not finite, or do not fit the classes or bands.
        ConfigError: `output` is a file or holds something, a class has no name, or deviations are not of 8-bit
            samples.
        SpacingError: `spacing` is none.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} is a file or not empty; choose a new folder")
    if "" in classes:
        raise ConfigError(f"classes {', '.join(classes)!r}: one has no name; name one for each logit")
    if max(std) < 1:
        # No 8-bit image varies so little: the network would see values hundreds of times too large.
        raise ConfigError(f"std {std} is of samples between 0 and 1, and images have 0 to 255; give mean and std x 255")
    network = from_reimplementation(read_state(weights))
    bands = network.config.bands
    spec = ModelSpec(
        name=name,
        architecture=network.config,
        classes=tuple(
            ClassInfo(value=k, name=text, color=_color(k, len(classes)), background=k == 0)
            for k, text in enumerate(classes)
        ),
        bands=("red", "green", "blue") if bands == 3 else tuple(f"band {k + 1}" for k in range(bands)),
        mean=mean,
        std=std,
        spacing=Spacing.parse(spacing) if spacing else None,
        training={"command": f"imported from {weights.name}"},
    )
    card = (
        f"# {name}\n\n**Imported** from {weights.name}, a plain state dict. Nobody has written down yet what it is "
        "for, what it was trained on, and what it cannot do: complete this card.\n"
    )
    return save_package(output, network, spec, card)


def _color(index: int, count: int) -> tuple[int, int, int]:
    if index == 0:
        return (0, 0, 0)
    r, g, b = colorsys.hsv_to_rgb((index - 1) / max(1, count - 1), 0.75, 0.9)
    return round(r * 255), round(g * 255), round(b * 255)
