"""Keeps the whole state of a training in one file that is replaced in one step; knows no network."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from unetpp.errors import DataError
from unetpp.train.config import TrainConfig


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_checkpoint(path: Path, state: Stateful, config: TrainConfig) -> None:
    """Replace the checkpoint; a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"config": asdict(config), "state": state.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path, state: Stateful, config: TrainConfig) -> bool:
    """Continue from a checkpoint; returns False where there is none.

    Raises:
        DataError: it was made with other settings (its steps would not be the ones this run would make).
    """
    if not path.is_file():
        return False
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["config"] != asdict(config):
        raise DataError(f"{path} was made with other settings; remove it to start anew, or give the same recipe")
    state.load_state_dict(saved["state"])
    return True
