"""Hashes the patches of a training store again; repairs nothing, for preparing again does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from rich.console import Console

from unetpp.errors import StoreError
from unetpp.train.store import ATTRIBUTES, PATCH_ARRAYS, PatchStore
from unetpp_workflows.cli_options import DONE, PART_FAILED


def is_store(path: Path) -> bool:
    """Say whether a path is a training store that `unetpp prepare` began."""
    return (path / "zarr.json").is_file() and ATTRIBUTES in zarr.open_group(path, mode="r").attrs


def print_store_verification(path: Path, console: Console) -> int:
    """Name every patch that is not what was written; returns the exit code.

    Raises:
        StoreError: the store is not finished, or lacks a shard.
    """
    store = PatchStore.open(path)
    bad = list(damaged_patches(store))
    for number, why in bad:
        image = store.images[int(store.image[number])].name
        text = f"patch {number} of {image} at {tuple(map(int, store.box[number]))}: {why}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    text = f"{len(bad)} patch(es) damaged; delete the store and run unetpp prepare again" if bad else "whole"
    console.print(f"{path}: {len(store.image)} patches, {text}", markup=False, highlight=False, soft_wrap=True)
    return PART_FAILED if bad else DONE


def damaged_patches(store: PatchStore) -> Iterator[tuple[int, str]]:
    """Yield number and fault of every patch whose content has another hash than when it was written."""
    group = zarr.open_group(store.path, mode="r")
    written = np.asarray(group["sha256"][...])  # type: ignore[index]
    arrays = [group[name] for name in PATCH_ARRAYS if name in group]
    for number, box in enumerate(store.box):
        height, width = int(box[2] - box[0]), int(box[3] - box[1])
        digest = hashlib.sha256()
        try:
            for array in arrays:
                part = np.asarray(array[number, :height, :width])  # type: ignore[index]
                digest.update(np.ascontiguousarray(part).tobytes())
        except (ValueError, RuntimeError, OSError, StoreError) as error:
            yield number, " ".join(str(error).split()) or type(error).__name__
            continue
        if digest.digest() != written[number].tobytes():
            yield number, "its content changed"
