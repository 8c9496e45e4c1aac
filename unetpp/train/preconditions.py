"""Refuses what no training can be made of before its first step; knows networks, numbers and images, trains nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from unetpp.errors import ConfigError, DataError, one_line
from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.train.augment import check_augment
from unetpp.train.config import TrainConfig
from unetpp.train.ranks import Ranks
from unetpp.train.source import Source

Network = UNetPlusPlus | UNet


def check_device(device: str) -> None:
    """Raise `ConfigError` for a device that torch does not know or has not here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device}: {one_line(error)}; give cpu or cuda") from None


def check_numbers(network: Network, training: Source, config: TrainConfig, ranks: Ranks) -> None:
    """Raise `ConfigError` for numbers that no step can be made with."""
    check_batch(config, ranks.world)
    check_patch(network.config, config)
    check_augment(config.augment, training.span)


def check_batch(config: TrainConfig, workers: int) -> None:
    """Raise `ConfigError` where some worker would have no patch."""
    if config.batch < workers * config.accumulate:
        raise ConfigError(
            f"batch = {config.batch} for {workers} workers and {config.accumulate} parts: "
            "give every worker a patch of every part"
        )


def check_patch(switches: GridConfig, config: TrainConfig) -> None:
    """Raise `ConfigError` for patches that a network with these switches cannot be trained on."""
    alone = config.batch == config.accumulate  # which one worker alone can do
    if switches.norm == "batch" and alone and config.patch <= switches.multiple:
        raise ConfigError(
            f"patch = {config.patch} is one pixel at the lowest level, and there is one patch at a time: its values "
            f"have no spread to normalise by; give patch = {2 * switches.multiple} or a larger batch"
        )


def check_images(network: Network, training: Source, validation: Source) -> None:
    """Raise `DataError` for images without labels, or with labels of classes that the network has not."""
    classes = max(2, network.config.classes)
    for role, source in (("training", training), ("validation", validation)):
        counts = source.blocks.counts
        if not counts.any():
            raise DataError(f"the {role} images have no labelled pixel; label some, or give other images")
        if counts[:, classes:].any():
            largest = int(np.flatnonzero(counts.any(0))[-1])
            raise DataError(
                f"{role} images have the label {largest}, and the network has {classes} classes; give it more"
            )


def check_normalisation(network: Network, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise `ConfigError` unless there is a finite mean and a deviation above 0 for every band of the network."""
    bands = network.config.bands
    whole = len(mean) == len(std) == bands and all(map(math.isfinite, (*mean, *std)))
    if not whole or min(std) <= 0:
        raise ConfigError(f"mean {tuple(mean)}, std {tuple(std)}: give {bands} finite numbers each, and std above 0")
