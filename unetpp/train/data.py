"""Labelled images in memory and where they lie on disk; knows files and splits, not networks."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetpp.errors import DataError
from unetpp.losses import IGNORE


@dataclass(frozen=True)
class Sample:
    """One image with its labels.

    Attributes:
        name: of the image, for reports.
        group: what must not be split: slide, scene, patient; or the kind of image. Figures are given per group.
        pixels: (H, W, C) uint8.
        labels: (H, W) uint8 class indices 0..K-1, 255 where a pixel does not count.
    """

    name: str
    group: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where labelled images lie and how they are split.

    Attributes:
        images: glob below the data folder.
        labels: path below the data folder, with {stem} for the image's file name without its ending.
        instances: label images number objects; every value > 0 is class index 1.
        label_map: value in the label image -> class index; values not named do not count. Empty: values are indices.
        table: CSV below the data folder with one row per image, or None.
        key, split, group: its columns with the image's stem, the split and the group.
        group_pattern: without a table, a regular expression whose first group names the image's group.
        validation: split (or groups, without a table) to validate on.
    """

    images: str
    labels: str
    instances: bool = False
    label_map: Mapping[int, int] = field(default_factory=dict)
    table: str | None = None
    key: str = "id"
    split: str = "split"
    group: str = "type"
    group_pattern: str = "(.*)"
    validation: tuple[str, ...] = ("val",)


def load_samples(config: DataConfig, root: Path) -> tuple[list[Sample], list[Sample]]:
    """Return (training, validation) samples, each sorted by name.

    Raises:
        DataError: no images, a missing label or table row, label and image of different sizes, or an empty split.
    """
    paths = sorted(root.glob(config.images))
    if not paths:
        raise DataError(f"no images match {config.images!r} in {root}; name the data folder with --data")
    table = _read_table(root / config.table, config) if config.table else None
    training: list[Sample] = []
    validation: list[Sample] = []
    for path in paths:
        if table is not None:
            if path.stem not in table:
                raise DataError(f"{config.table} has no row for {path.name}; add it or remove the image")
            split, group = table[path.stem]
            held_out = split in config.validation
        else:
            found = re.search(config.group_pattern, path.stem)
            if found is None:
                raise DataError(f"{path.name} does not match group_pattern {config.group_pattern!r}")
            group = found[1]
            held_out = group in config.validation
        sample = _load(path, root / config.labels.format(stem=path.stem), group, config)
        (validation if held_out else training).append(sample)
    if not training or not validation:
        raise DataError(f"{len(training)} training and {len(validation)} validation images; check {config.validation}")
    return training, validation


def fingerprint(samples: list[Sample]) -> str:
    """Return the SHA-256 (hex) over names, pixels and labels."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.name.encode())
        digest.update(hashlib.sha256(sample.pixels.tobytes()).digest())
        digest.update(hashlib.sha256(sample.labels.tobytes()).digest())
    return digest.hexdigest()


def statistics(samples: list[Sample]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per band over all pixels of all samples."""
    count = sum(s.labels.size for s in samples)
    total = sum(s.pixels.reshape(-1, s.pixels.shape[-1]).sum(0, dtype=np.float64) for s in samples)
    mean = np.asarray(total) / count
    squares: Any = sum(((s.pixels - mean) ** 2).reshape(-1, s.pixels.shape[-1]).sum(0) for s in samples)
    deviation = np.sqrt(squares / count)
    return tuple(round(float(v), 3) for v in mean), tuple(round(float(v), 3) for v in deviation)


def _read_table(path: Path, config: DataConfig) -> dict[str, tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row[config.key]: (row[config.split], row[config.group]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        raise DataError(f"{path} is missing; name the data folder with --data") from None
    except KeyError as error:
        raise DataError(f"{path} has no column {error}; name its columns in the recipe") from None


def _load(path: Path, label_path: Path, group: str, config: DataConfig) -> Sample:
    from PIL import Image

    if not label_path.is_file():
        raise DataError(f"{path.name} has no labels at {label_path}; add them or remove the image")
    with Image.open(path) as image, Image.open(label_path) as label:
        pixels = np.array(image.convert("RGB"))
        raw = np.asarray(label)
    if raw.shape != pixels.shape[:2]:
        raise DataError(f"{label_path} is {raw.shape}, its image {pixels.shape[:2]}; they must have one size")
    if config.instances:
        labels = (raw > 0).astype(np.uint8)
    elif config.label_map:
        labels = np.full(raw.shape, IGNORE, np.uint8)
        for value, index in config.label_map.items():
            labels[raw == value] = index
    else:
        labels = raw.astype(np.uint8)
    return Sample(path.stem, group, pixels, labels)
