"""Measures a model package on one split of a training store; knows packages and stores, no registry and no MLflow.

The result holds counts per group of images, not only figures, so that two models can be compared by pairs of groups
later without computing anything again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetpp.engine import choose_engine
from unetpp.errors import DataError, StoreError
from unetpp.geometry import Spacing
from unetpp.metrics import Confusion
from unetpp.missing import fill_values
from unetpp.model import halo
from unetpp.model.orientations import Tta
from unetpp.native.support import WHOLE
from unetpp.package import ClassInfo, ModelSpec, Package
from unetpp.train.content import holds_parts, known_images
from unetpp.train.measure import Counts, Measurement, measure
from unetpp.train.normalise import Normalise
from unetpp.train.store import PatchSource, PatchStore
from unetpp.train.validate import Prediction, predict, predicted
from unetpp_workflows import speed
from unetpp_workflows.figures import figures, number, per_class
from unetpp_workflows.record import software
from unetpp_workflows.training_data import check_surrounded

if TYPE_CHECKING:
    from unetpp_workflows.registry import ResolvedModel

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one model did on one frozen set of images.

    Attributes:
        key: SHA-256 (hex) of everything the counts depend on: weights, images and labels, precision,
            orientations.
        model: name, version, digest, uri.
        data: name, store (path), split, fingerprint (of the split), images, groups, within_group, shared (how many
            images the model was trained on, and validated on, as far as the package tells; see `shared_images`).
        classes: of the model, as JSON.
        figures: see `unetpp_workflows.figures.figures`, and average_precision per class.
        groups: name -> {"confusion": (K, K), "calibration": (3, bins)}, summable counts.
        images: name, group, stratum and confusion (K, K) of every image.
        totals: counts over all images of what curves are drawn from: calibration, temperature, curves.
        speed: see `unetpp_workflows.speed.measure_speed`.
        skipped: images too large for boundaries and objects.
        run: the MLflow run, once there is one.
    """

    key: str
    model: dict[str, Any]
    data: dict[str, Any]
    classes: list[dict[str, Any]]
    precision: str
    tta: Tta = "none"
    figures: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    images: list[dict[str, Any]]
    totals: dict[str, Any]
    speed: dict[str, Any]
    skipped: list[str] = field(default_factory=list)
    software: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    run: str | None = None
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what `to_json` wrote; raises `StoreError` for anything else."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise StoreError(f"evaluation of format {values['format']}, this version reads {FORMAT}; evaluate anew")
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"not an evaluation ({error}); evaluate anew") from error

    def confusions(self) -> dict[str, NDArray[np.int64]]:
        """Return the confusion (K, K) of every group."""
        return {name: np.array(counts["confusion"], np.int64) for name, counts in self.groups.items()}

    def strata(self) -> dict[str, NDArray[np.int64]]:
        """Return the confusion (K, K) of every stratum, the kinds of images that figures are given by."""
        found: dict[str, NDArray[np.int64]] = {}
        for row in self.images:
            matrix = np.array(row["confusion"], np.int64)
            found[row["stratum"]] = found[row["stratum"]] + matrix if row["stratum"] in found else matrix
        return found


@dataclass(frozen=True)
class EvaluationData:
    """One split of a store, opened: what is evaluated on."""

    store: PatchStore
    split: str
    source: PatchSource

    @classmethod
    def open(cls, path: Path, split: str) -> EvaluationData:
        """Open a split; raises `StoreError` for a store that is none, or has no such split."""
        store = PatchStore.open(path)
        return cls(store, split, store.source(split))

    def seen_by(self, spec: ModelSpec) -> EvaluationData:
        """Return the images as segmentation shows them to the model: pixels without data are its mean."""
        store = self.store.filled(spec.mean)
        return EvaluationData(store, self.split, store.source(self.split))

    @property
    def name(self) -> str:
        return str(self.store.facts.get("name") or self.store.path.stem)


def evaluation_key(package: Package, data: EvaluationData, precision: str, tta: Tta = "none") -> str:
    """Return what a repeated evaluation is recognised by."""
    parts: list[Any] = [
        FORMAT,
        package.digest,
        data.source.fingerprint,
        data.split,
        precision,
        *([tta] if tta != "none" else []),
    ]
    # Where the two differ, evaluations of older versions showed the network the store's mean where there is no data.
    fill = fill_values(package.spec.mean, data.store.dtype)
    if (fill != fill_values(data.store.mean, data.store.dtype)).any():
        parts.append({"fill": fill.tolist()})
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def evaluate(
    model: ResolvedModel,
    package: Package,
    data: EvaluationData,
    *,
    precision: str = "fp32",
    tta: Tta = "none",
    device: str = "cpu",
    known: Mapping[int, Counts] | None = None,
    on_image: Callable[[int, Counts], None] | None = None,
) -> Evaluation:
    """Predict every image of the split as a whole image and count; then time the deployed engine.

    Args:
        model, package: what is evaluated, resolved and opened.
        precision: "fp32" or "bf16" of the network in plain torch, or "int16" or "int8" of the native engine on the CPU.
        tta: see `unetpp.model.turned`; counts and speed are then with it.
        device: where it runs, "cpu" or "cuda".
        known, on_image: see `unetpp.train.measure.measure`.

    Raises:
        DataError: the store's classes, bands, sample type or pixel size are not the model's.
        EngineError: int16 or int8 cannot be used here.
    """
    spec = package.spec
    check_fit(spec, data)
    data = data.seen_by(spec)
    predictions = _predictions(package, data.source, precision, tta, device, known or {})
    classes = max(2, spec.architecture.classes)
    found = measure(predictions, data.source, classes, known=known, on_image=on_image)
    names = [info.name for info in spec.classes]
    total = found.total()
    return Evaluation(
        key=evaluation_key(package, data, precision, tta),
        model=dict(model.reference()),
        data={
            "name": data.name,
            "store": str(data.store.path.absolute()),
            "split": data.split,
            "fingerprint": data.source.fingerprint,
            "images": len(data.source.images),
            "groups": len(found.groups),
            "within_group": data.store.within_group,
            "shared": shared_images(spec, data),
        },
        classes=[{**dataclasses.asdict(info), "color": list(info.color)} for info in spec.classes],
        precision=precision,
        tta=tta,
        figures={
            **figures(names, found),
            "average_precision": per_class(names, total.curves.average_precision),
            "best_loss": number(np.nanmin(total.temperature.loss)),
        },
        groups={name: _group(counts) for name, counts in sorted(found.groups.items())},
        images=_images(data, found),
        totals={name: getattr(total, name).counts.tolist() for name in ("calibration", "temperature", "curves")},
        speed=speed.measure_speed(package.folder, tta, precision if precision in WHOLE else "auto"),
        skipped=found.skipped,
        software=software(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _predictions(
    package: Package, source: PatchSource, precision: str, tta: Tta, device: str, known: Mapping[int, Counts]
) -> Iterator[Prediction]:
    spec = package.spec
    if precision not in WHOLE:
        network, norm = package.load_model().to(device), Normalise(spec.mean, spec.std, device)
        return predict(network, source, norm, precision=precision, tta=tta, skip=known)
    engine = choose_engine(package, precision=precision, tta=tta)
    config = spec.architecture

    def run(pixels: NDArray[Any]) -> list[Tensor]:
        return [torch.from_numpy(engine.logits(pixels))]

    return predicted(run, source, halo(config), config.multiple, skip=known)


def check_fit(spec: ModelSpec, data: EvaluationData) -> None:
    """Raise `DataError` unless the store's images are what the model takes and sees, its labels what the model says."""
    store = data.store
    for what, mine, theirs in (
        ("classes", _names(spec.classes), _names(store.classes)),
        ("bands", list(spec.bands), list(store.bands)),
        ("sample type", spec.dtype, store.dtype),
    ):
        if mine != theirs:
            raise DataError(
                f"{store.path} has {what} {_listed(theirs)}, model {spec.name!r} {_listed(mine)}; "
                "prepare a store for this model"
            )
    if spec.spacing is not None and (store.spacing is None or not _close(spec.spacing, store.spacing)):
        known = store.spacing or "an unknown size, or of several"
        raise DataError(
            f"{store.path} has pixels of {known}, model {spec.name!r} was trained at {spec.spacing}; "
            "prepare a store with that spacing"
        )
    check_surrounded(data.source, store.path, halo(spec.architecture))


def shared_images(spec: ModelSpec, data: EvaluationData) -> dict[str, int | None]:
    """Return how many images of the split the model was trained and validated on: {"training": n, "validation": n}.

    Images are compared by their pixels. None where the package tells nothing to compare; packages of older versions
    tell only whether a whole split is the same.
    """
    shared: dict[str, int | None] = {}
    for role in ("training", "validation"):
        content, fingerprint = spec.training.get(f"{role}_content"), spec.training.get(f"{role}_fingerprint")
        if fingerprint is not None and fingerprint == data.source.fingerprint:
            shared[role] = len(data.source.images)
        elif content is not None:
            shared[role] = known_images(data.source, content)
        else:
            # Weights that started from a model which does not tell have seen more than this fingerprint says.
            told = fingerprint is not None and not spec.training.get("start")
            shared[role] = 0 if told else None
    return shared


def tells_parts(spec: ModelSpec, data: EvaluationData) -> bool:
    """Say whether parts of images are among those of the split, or among those the model was trained or chosen on."""
    content = (spec.training.get(f"{role}_content") or () for role in ("training", "validation"))
    return any(image.part for image in data.source.images) or holds_parts(chain.from_iterable(content))


def mean_iou(confusion: NDArray[Any]) -> float:
    """Return what models are compared by, of a confusion (K, K); see `unetpp.metrics.judged_iou`."""
    return Confusion.from_state(confusion).judged_iou


def _close(a: Spacing, b: Spacing) -> bool:
    """Say whether two pixel sizes are the same within 1%, as `unetpp prepare` takes them to be."""
    if "deg" in (a.unit, b.unit):
        return a.unit == b.unit and np.allclose((a.y, a.x), (b.y, b.x), rtol=0.01, atol=0)
    return np.allclose(a.metres(), b.metres(), rtol=0.01, atol=0)


def _group(counts: Counts) -> dict[str, Any]:
    return {name: getattr(counts, name).state().tolist() for name in ("confusion", "calibration")}


def _images(data: EvaluationData, found: Measurement) -> list[dict[str, Any]]:
    rows = []
    for index, confusion in sorted(found.images.items()):
        image = data.source.images[index]
        row: Mapping[str, Any] = {"name": image.name, "group": image.group, "stratum": image.stratum, "index": index}
        rows.append({**row, "confusion": confusion.matrix.tolist()})
    return rows


def _names(classes: tuple[ClassInfo, ...]) -> list[str]:
    return [info.name for info in classes]


def _listed(value: list[str] | str) -> str:
    return value if isinstance(value, str) else ", ".join(value)
