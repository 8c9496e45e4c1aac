"""Keeps the whole state of a training in one file that is replaced in one step; knows no network."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from unetpp.durable import output_errors, write_file
from unetpp.errors import DataError, one_line
from unetpp.train.config import TrainConfig


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Facts = Mapping[str, object]
"""What a training is made from beside its settings, by name: fingerprints, normalisation, network."""


def save_checkpoint(path: Path, state: Stateful, config: TrainConfig, facts: Facts) -> None:
    """Replace the checkpoint; a crash leaves the old one or the new one. Raises `OutputError`."""
    # Through memory: torch's own writer tells of a full disk in words of its own, and leaves half a file.
    content = io.BytesIO()
    torch.save({"config": asdict(config), "facts": dict(facts), "state": state.state_dict()}, content)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content.getvalue())


def load_saved(path: Path, advice: str) -> Any:
    """Return what torch.save wrote, without running any code in it; raises `DataError` where it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own words advise to load it without this protection.
        raise DataError(f"{path} does not read (damaged, or no file of ours); {advice}") from None
    except (OSError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} does not read ({one_line(error)}); {advice}") from error


def load_checkpoint(path: Path, state: Stateful, config: TrainConfig, facts: Facts) -> bool:
    """Continue from a checkpoint; returns False where there is none.

    Raises:
        DataError: it is damaged, or was made with other settings, from other images, or of another network (its steps
            would not be the ones this run would make, and images that it trained on could be validated on).
    """
    if not path.is_file():
        return False
    saved = load_saved(path, "remove it to start anew")
    if not isinstance(saved, dict) or saved.get("config") != asdict(config):
        raise DataError(f"{path} was made with other settings; remove it to start anew, or give the same recipe")
    made = saved.get("facts", {})
    other = [name for name, value in facts.items() if made.get(name) != value]
    if other:
        raise DataError(
            f"{path} was made with another {' and '.join(other)}; remove it to start anew, or give the same"
        )
    state.load_state_dict(saved["state"])
    return True
