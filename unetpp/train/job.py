"""A training as a folder that needs nothing but torch and numpy to run: data as plain arrays, and one JSON document.

FOLDER/data/           a store that `unetpp.train.store.export` wrote
FOLDER/training.json   the network's switches and the training's numbers
FOLDER/checkpoint.pt   what the next slice of time continues from
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unetpp.durable import write_file
from unetpp.errors import ConfigError
from unetpp.losses import LossConfig
from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.train.config import AugmentConfig, TrainConfig

DATA, DOCUMENT, CHECKPOINT = "data", "training.json", "checkpoint.pt"


@dataclass(frozen=True)
class ExportedTraining:
    """What training.json says.

    Attributes:
        kind: "unetplusplus" or "unet". architecture: its switches. config: the training's numbers.
    """

    kind: str
    architecture: GridConfig
    config: TrainConfig

    def save(self, folder: Path) -> None:
        values = {"kind": self.kind, "architecture": asdict(self.architecture), "config": asdict(self.config)}
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / DOCUMENT, (json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> ExportedTraining:
        """Read the document; raises `ConfigError` where there is none, or where it is not of this version."""
        try:
            values = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
            return cls(values["kind"], GridConfig.from_dict(values["architecture"]), config_from(values["config"]))
        except FileNotFoundError:
            raise ConfigError(f"{folder} has no {DOCUMENT}; write it with `unetpp train RECIPE --export`") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder / DOCUMENT}: {error}; export the training again") from error

    def network(self) -> UNetPlusPlus | UNet:
        return (UNet if self.kind == "unet" else UNetPlusPlus)(self.architecture)


def config_from(values: dict[str, Any]) -> TrainConfig:
    """Return a configuration from JSON values."""
    plain = _tuples(values)
    return TrainConfig(**{**plain, "loss": LossConfig(**plain["loss"]), "augment": AugmentConfig(**plain["augment"])})


def _tuples(value: Any) -> Any:
    """JSON has lists where the configuration has tuples."""
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
