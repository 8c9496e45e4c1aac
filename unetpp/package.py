"""A trained model as a folder of safe files: weights, what they mean, and a card; knows no registry and no engine.

weights.safetensors   the network's state dict
model.json            architecture, classes, bands, normalization, spacing, training data, metrics
MODEL_CARD.md         the same for people
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unetpp.durable import output_errors, write_file
from unetpp.errors import ModelNotFoundError, ModelPackageError, UnetppError
from unetpp.geometry import Spacing

if TYPE_CHECKING:
    from unetpp.model import GridConfig, UNet, UNetPlusPlus

WEIGHTS, SPEC, CARD = "weights.safetensors", "model.json", "MODEL_CARD.md"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """One class: the value written to label arrays (0..254; 255 means no data), its name and its colour."""

    value: int
    name: str
    color: tuple[int, int, int]
    background: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 254:
            raise ModelPackageError(f"class {self.name!r} has value {self.value}; use 0..254, 255 means no data")
        if len(self.color) != 3 or not all(0 <= part <= 255 for part in self.color):
            raise ModelPackageError(f"class {self.name!r} has the colour {self.color}; give red, green, blue of 0..255")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the weights need to be used rightly.

    Attributes:
        name: registry name, letters, digits, `_` and `-`; outside the registry also dots, not first.
        network: "unetplusplus" or "unet".
        architecture: the network's switches.
        classes: in the order of the logits. A network of one logit has two: background, then foreground.
        bands: names in input order.
        mean, std: per band, in raw sample units: the network sees (x - mean) / std.
        dtype: sample type it was trained on.
        spacing: physical pixel size it was trained at, or None where the training images had none.
        training: data, licence, fingerprint, command.
        metrics: validation figures that the training code measured.
    """

    name: str
    architecture: GridConfig
    classes: tuple[ClassInfo, ...]
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: Literal["unetplusplus", "unet"] = "unetplusplus"
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    spacing: Spacing | None = None
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ModelPackageError(
                f"model name {self.name!r} cannot name files; use letters, digits, _, - and, not first, dots"
            )
        bands = self.architecture.bands
        if not len(self.bands) == len(self.mean) == len(self.std) == bands:
            raise ModelPackageError(
                f"model {self.name!r}: {len(self.bands)} band names, {len(self.mean)} means and {len(self.std)} "
                f"deviations for {bands} input bands; give one of each per band"
            )
        if not all(math.isfinite(number) for number in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ModelPackageError(
                f"model {self.name!r}: mean {self.mean} and std {self.std} must be finite numbers, and std positive"
            )
        logits = self.architecture.classes
        if len(self.classes) != (2 if logits == 1 else logits):
            raise ModelPackageError(f"model {self.name!r}: {len(self.classes)} classes described for {logits} logits")
        if len({c.value for c in self.classes}) != len(self.classes):
            raise ModelPackageError(f"model {self.name!r}: two classes share a value; give each its own")
        if len({c.name for c in self.classes}) != len(self.classes):
            raise ModelPackageError(f"model {self.name!r}: two classes share a name; give each its own")

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelSpec:
        """Build from `model.json`'s content; raises `ModelPackageError` for keys or versions it does not know."""
        from unetpp.model import GridConfig

        values = dict(values) if isinstance(values, dict) else {}
        if values.pop("format", None) != FORMAT:
            raise ModelPackageError(f"{SPEC} is not of format {FORMAT}; it was written by another version of unetpp")
        try:
            return cls(
                **{
                    **values,
                    "architecture": GridConfig.from_dict(values["architecture"]),
                    "classes": tuple(ClassInfo(**{**c, "color": tuple(c["color"])}) for c in values["classes"]),
                    "bands": tuple(values["bands"]),
                    "mean": tuple(values["mean"]),
                    "std": tuple(values["std"]),
                    "spacing": Spacing(**values["spacing"]) if values.get("spacing") else None,
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ModelPackageError(f"{SPEC} does not describe a model: {error}; write it with save_package") from error


@dataclass(frozen=True)
class Package:
    """A model package on disk, checked but with its weights not yet loaded."""

    folder: Path
    spec: ModelSpec
    digest: str

    def load_model(self) -> UNetPlusPlus | UNet:
        """Build the network on the CPU in eval mode; raises `ModelPackageError` where weights do not fit or are NaN."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from unetpp.model import UNet, UNetPlusPlus

        # Before the network is built: a width of millions would take all memory for its first values.
        widths = self.spec.architecture.filters[: self.spec.architecture.last + 1]  # a pruned grid has the first levels
        if sum(a * b for a, b in pairwise(widths)) > (self.folder / WEIGHTS).stat().st_size:
            raise ModelPackageError(f"{self.folder / WEIGHTS} is too small for the widths {widths} of {SPEC}")
        model = (UNetPlusPlus if self.spec.network == "unetplusplus" else UNet)(self.spec.architecture)
        try:
            weights = load_file(self.folder / WEIGHTS)
            model.load_state_dict(
                {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
            )
        except (SafetensorError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelPackageError(f"{self.folder / WEIGHTS} does not fit {SPEC}: {first}") from error
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise ModelPackageError(
                    f"{self.folder / WEIGHTS}: {name} is not finite; its training diverged, train at a smaller rate"
                )
        return model.eval()


def save_package(folder: Path, model: UNetPlusPlus | UNet, spec: ModelSpec, card: str) -> Package:
    """Write a package folder (created, or its three files replaced) and return it as loaded.

    `model.json` is written last: where it is, the package is whole.

    Raises:
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC).unlink(missing_ok=True)
    write_file(folder / WEIGHTS, save(weights))
    write_file(folder / CARD, card.encode())
    write_file(folder / SPEC, (json.dumps(spec.to_json(), indent=1) + "\n").encode())
    return load_package(folder)


def load_package(folder: Path | str) -> Package:
    """Read and check a package folder.

    Raises:
        ModelNotFoundError: there is no such folder.
        ModelPackageError: a file is missing, or `model.json` does not describe a model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelNotFoundError(f"no model package at {folder}; give a folder with {WEIGHTS} and {SPEC}")
    for name in (WEIGHTS, SPEC):
        if not (folder / name).is_file():
            raise ModelPackageError(f"{folder} has no {name}; a model package needs {WEIGHTS} and {SPEC}")
    try:
        values = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        spec = ModelSpec.from_json(values)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelPackageError(f"{folder / SPEC} is not JSON: {error}") from error
    except ModelPackageError as error:
        raise ModelPackageError(f"{folder}: {error}") from error
    except UnetppError as error:
        raise ModelPackageError(f"{folder / SPEC}: {error}") from error
    return Package(folder, spec, package_digest(folder))


def package_digest(folder: Path | str) -> str:
    """Return the SHA-256 (hex) of the weights file and `model.json`: what results depend on. The card is left out."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, SPEC):
        with (Path(folder) / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def bundled_package(name: str) -> Path:
    """Return the folder of a model that came with the installation; raises `ModelNotFoundError` naming those there."""
    folder = BUNDLED / name
    if Path(name).name != name or not folder.is_dir():
        raise ModelNotFoundError(f"no bundled model {name!r}; bundled models: {', '.join(bundled_names()) or 'none'}")
    return folder


def bundled_names() -> list[str]:
    """List the models that came with the installation."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{SPEC}"))
