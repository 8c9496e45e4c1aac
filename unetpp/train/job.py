"""A training as a folder that needs nothing but torch and numpy to run: data as plain arrays, and one JSON document.

FOLDER/data/           a store that `unetpp.train.store.export` wrote
FOLDER/training.json   the network's switches and the training's numbers
FOLDER/start.pt        the weights to start from, where they are another model's
FOLDER/checkpoint.pt   what the next slice of time continues from
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetpp.durable import write_file
from unetpp.errors import ConfigError
from unetpp.losses import LossConfig
from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.train.checkpoint import load_saved
from unetpp.train.config import AugmentConfig, TrainConfig

DATA, DOCUMENT, START, CHECKPOINT = "data", "training.json", "start.pt", "checkpoint.pt"


@dataclass(frozen=True)
class ExportedTraining:
    """What training.json says.

    Attributes:
        kind: "unetplusplus" or "unet". architecture: its switches. config: the training's numbers.
        mean, std: per band: the network sees (x - mean) / std.
    """

    kind: str
    architecture: GridConfig
    config: TrainConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the document and, where the network does not start from random ones, its weights."""
        values = asdict(self)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / START).unlink(missing_ok=True)
        if weights is not None:
            torch.save(dict(weights), folder / START)
        write_file(folder / DOCUMENT, (json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> ExportedTraining:
        """Read the document; raises `ConfigError` where there is none, or where it is not of this version."""
        try:
            values = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
            return cls(
                values["kind"],
                GridConfig.from_dict(values["architecture"]),
                config_from(values["config"]),
                tuple(values["mean"]),
                tuple(values["std"]),
            )
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{folder} has no {DOCUMENT}; write it with `unetpp train RECIPE --export`") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder / DOCUMENT}: {error}; export the training again") from error

    def network(self, folder: Path) -> UNetPlusPlus | UNet:
        """Build the network that the first step finds; raises `DataError` where its weights are damaged."""
        network = (UNet if self.kind == "unet" else UNetPlusPlus)(self.architecture)
        if (folder / START).is_file():
            network.load_state_dict(load_saved(folder / START, "copy the folder again"))
        return network


def config_from(values: dict[str, Any]) -> TrainConfig:
    """Return a configuration from JSON values."""
    plain = _tuples(values)
    return TrainConfig(**{**plain, "loss": LossConfig(**plain["loss"]), "augment": AugmentConfig(**plain["augment"])})


def _tuples(value: Any) -> Any:
    """JSON has lists where the configuration has tuples."""
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
