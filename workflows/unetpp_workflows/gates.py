"""Judges whether one model may replace another from two evaluations; knows numbers and limits, moves and reads nothing.

A gates file is TOML; what it leaves out has the defaults below:

    off = ["speed"]                        # gates that are not asked
    [non_inferiority]
    margin = 0.01                          # IoU that the challenger may lose at most
    confidence = 0.95
    [floors]
    classes = { nucleus = 0.7 }            # IoU that each of these classes must have
    strata = { "H&E" = 0.6 }               # IoU that each of these kinds of images must have
    group = 0.3                            # IoU that every group of images must have
    [calibration]
    ece = 0.1
    [speed]
    share = 0.8                            # of the champion's speed
    least = 1.0                            # Mpx per second of one thread
    [memory]
    share = 1.25
    most_mb = 2000.0
    [shadow]
    agreement = 0.9                        # share of pixels on which both agree where the challenger ran as a shadow
    images = 0                             # on at least so many images; without any and with 0 this is not asked
    [leak]
    training = 0                           # images of the evaluation that the training may have seen
    validation = 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from unetpp.errors import ConfigError
from unetpp.metrics import bootstrap
from unetpp.package import ModelSpec
from unetpp_workflows.config import read_toml, validate
from unetpp_workflows.evaluation import Evaluation, mean_iou
from unetpp_workflows.model_card import missing_parts

_UNKNOWN = "needs 2 groups, and images that show the class"
_NOISE_MB = 32.0
"""By which two measurements of one model's memory may differ."""
GateName = Literal["non_inferiority", "first", "floors", "calibration", "speed", "memory", "card", "leak", "shadow"]


_Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NonInferiorityGate(_Section):
    """`confidence` that the challenger's IoU is not more than `margin` below the champion's; one-sided."""

    margin: float = Field(default=0.01, ge=0, le=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class FloorsGate(_Section):
    """Least IoU per class, pooled; of each stratum, and of every group, of the foreground or the mean over classes."""

    classes: dict[str, _Share] = Field(default_factory=dict)
    strata: dict[str, _Share] = Field(default_factory=dict)
    group: float | None = Field(default=None, ge=0, le=1)


class CalibrationGate(_Section):
    """Largest expected calibration error."""

    ece: float = Field(default=0.1, ge=0, le=1)


class SpeedGate(_Section):
    """Least share of the champion's speed, and least Mpx/s of one thread on the machine that promotes."""

    share: float = Field(default=0.8, ge=0)
    least: float | None = Field(default=None, ge=0)


class MemoryGate(_Section):
    """Largest share of the champion's memory for one tile, and largest MB on the machine that promotes."""

    share: float = Field(default=1.25, ge=0)
    most_mb: float | None = Field(default=None, ge=0)


class LeakGate(_Section):
    """How many images of the evaluation the training may have learned from, and chosen its best step on."""

    training: int = Field(default=0, ge=0)
    validation: int = Field(default=0, ge=0)


class ShadowGate(_Section):
    """Least agreement with the champion, pooled over pixels, where the challenger ran as its shadow."""

    agreement: float = Field(default=0.9, ge=0, le=1)
    images: int = Field(default=0, ge=0)


class Gates(_Section):
    """All gates; see the module."""

    off: tuple[GateName, ...] = ()
    non_inferiority: NonInferiorityGate = NonInferiorityGate()
    floors: FloorsGate = FloorsGate()
    calibration: CalibrationGate = CalibrationGate()
    speed: SpeedGate = SpeedGate()
    memory: MemoryGate = MemoryGate()
    leak: LeakGate = LeakGate()
    shadow: ShadowGate = ShadowGate()


@dataclass(frozen=True)
class Candidate:
    """One side: what it is, what it did, and how fast it is on this machine now (see `unetpp_workflows.speed`)."""

    spec: ModelSpec
    card: str
    evaluation: Evaluation
    speed: dict[str, Any]


@dataclass(frozen=True)
class ShadowEvidence:
    """What shadow runs of a challenger beside the champion came to; `agreement` is None without any image."""

    images: int
    agreement: float | None


@dataclass(frozen=True)
class GateResult:
    """One line of the table.

    Attributes:
        by: by how much it was passed, negative where it failed, in the unit of `measured`, or None.
    """

    gate: str
    passed: bool
    measured: str
    limit: str
    by: float | None = None

    @property
    def of_the_moment(self) -> bool:
        """Whether another moment may answer otherwise, with less beside it on the machine: speed and memory."""
        return self.gate.startswith(("speed", "memory"))


def load_gates(file: Path | None) -> Gates:
    """Read a gates file; without one, the defaults. Raises `ConfigError`."""
    return validate(Gates, read_toml(file) if file else {}, source=str(file or "gates"))


def check_names(gates: Gates, classes: Collection[str], strata: Collection[str]) -> None:
    """Raise `ConfigError` for a floor of a class or a kind of images that there is not: no model could pass it.

    Args:
        classes, strata: those of the images that will be judged on.
    """
    if "floors" in gates.off:
        return
    for key, named, there in (("classes", gates.floors.classes, classes), ("strata", gates.floors.strata, strata)):
        for name in named:
            if name not in there:
                raise ConfigError(f"gates, floors.{key}: the images have no {name!r}; they have {', '.join(there)}")


def judge(
    gates: Gates, challenger: Candidate, champion: Candidate | None, shadow: ShadowEvidence | None = None
) -> list[GateResult]:
    """Return one result per question asked.

    Without a champion there is nothing to compare with: the gate `first` asks instead whether the model beats the best
    constant answer, and of speed and memory only the absolute limits are asked.
    """
    asked: dict[str, Callable[[], list[GateResult]]] = {
        "non_inferiority": lambda: _non_inferiority(gates.non_inferiority, challenger, champion) if champion else [],
        "first": lambda: [] if champion else _first(gates.non_inferiority, challenger),
        "floors": lambda: _floors(gates.floors, challenger),
        "calibration": lambda: _calibration(gates.calibration, challenger),
        "speed": lambda: _speed(gates.speed, challenger, champion),
        "memory": lambda: _memory(gates.memory, challenger, champion),
        "card": lambda: _card(challenger),
        "leak": lambda: _leak(gates.leak, challenger),
        "shadow": lambda: judge_shadow(gates.shadow, shadow or ShadowEvidence(0, None)) if champion else [],
    }
    return [result for name, ask in asked.items() if name not in gates.off for result in ask()]


def paired_difference(
    champion: Evaluation, challenger: Evaluation, confidence: float
) -> tuple[float, float, dict[str, float]]:
    """Return challenger minus champion: of all images, its one-sided lower bound, and of every group.

    Groups are drawn with replacement, both models with the same draws: what is hard for both cancels out.
    """
    first, second = champion.confusions(), challenger.confusions()
    assert first.keys() == second.keys(), "evaluations of one key have the same groups"
    pairs = np.stack([np.stack([first[name], second[name]]) for name in first])
    low, _ = bootstrap(pairs, _gain, confidence=2 * confidence - 1)
    return _gain(pairs.sum(0)), float(low), {name: _gain(pair) for name, pair in zip(first, pairs, strict=True)}


def _gain(pair: NDArray[Any]) -> float:
    return mean_iou(pair[1]) - mean_iou(pair[0])


def _non_inferiority(gate: NonInferiorityGate, challenger: Candidate, champion: Candidate) -> list[GateResult]:
    gain, low, groups = paired_difference(champion.evaluation, challenger.evaluation, gate.confidence)
    limit = f"above -{gate.margin:g} with {gate.confidence:.0%} confidence"
    if math.isnan(low):
        return [GateResult("non-inferiority", False, f"{gain:+.4f}, {len(groups)} group(s)", f"{limit}: {_UNKNOWN}")]
    found = f"{gain:+.4f}, at least {low:+.4f}"
    return [GateResult("non-inferiority", low >= -gate.margin, found, limit, low + gate.margin)]


def _first(gate: NonInferiorityGate, challenger: Candidate) -> list[GateResult]:
    states = np.stack(list(challenger.evaluation.confusions().values()))
    low, _ = bootstrap(states, lambda state: mean_iou(state) - _constant(state), confidence=2 * gate.confidence - 1)
    gain = mean_iou(states.sum(0)) - _constant(states.sum(0))
    limit = f"above 0 with {gate.confidence:.0%} confidence"
    if math.isnan(float(low)):
        found = f"{gain:+.4f}, {len(states)} group(s)"
        return [GateResult("first: IoU over the best constant answer", False, found, f"{limit}: {_UNKNOWN}")]
    return [
        GateResult(
            "first: IoU over the best constant answer",
            bool(low > 0),
            f"{gain:+.4f}, at least {float(low):+.4f}",
            limit,
            float(low),
        )
    ]


def _constant(confusion: NDArray[Any]) -> float:
    """Return the best `mean_iou` of answering one class everywhere."""
    truth = confusion.sum(1)
    answers = []
    for index in range(len(truth)):
        answer = np.zeros_like(confusion)
        answer[:, index] = truth
        answers.append(mean_iou(answer))
    return float(np.nanmax(answers))


def _floors(gate: FloorsGate, challenger: Candidate) -> list[GateResult]:
    results = []
    iou = challenger.evaluation.figures["iou"]
    for name, floor in gate.classes.items():
        value = iou.get(name)
        if value is None:
            what = "does not occur in the evaluation" if name in iou else "is no class of the model"
            results.append(GateResult(f"IoU of {name}", False, what, f"at least {floor:g}"))
        else:
            results.append(_least(f"IoU of {name}", value, floor))
    strata = challenger.evaluation.strata()
    for name, floor in gate.strata.items():
        if name in strata and math.isfinite(score := mean_iou(strata[name])):
            results.append(_least(f"IoU of {name}", score, floor))
        else:
            there = ", ".join(strata)
            results.append(
                GateResult(f"IoU of {name}", False, f"not measured; there is {there}", f"at least {floor:g}")
            )
    if gate.group is not None:
        by_group = {name: mean_iou(matrix) for name, matrix in challenger.evaluation.confusions().items()}
        worst = min(
            (name for name in by_group if math.isfinite(by_group[name])), key=by_group.__getitem__, default=None
        )
        if worst is None:
            results.append(GateResult("IoU of the worst group", False, "no group has the class", f"{gate.group:g}"))
        else:
            results.append(_least(f"IoU of the worst group ({worst})", by_group[worst], gate.group))
    return results


def _calibration(gate: CalibrationGate, challenger: Candidate) -> list[GateResult]:
    return [_most("calibration error", challenger.evaluation.figures["ece"], gate.ece)]


def _speed(gate: SpeedGate, challenger: Candidate, champion: Candidate | None) -> list[GateResult]:
    results, mine = [], challenger.speed["mpx_per_second"]
    if champion is not None:
        results.append(_least("speed, share of the champion's", mine / champion.speed["mpx_per_second"], gate.share))
    if gate.least is not None:
        results.append(_least("speed, Mpx/s of one thread", mine, gate.least))
    return results


def _memory(gate: MemoryGate, challenger: Candidate, champion: Candidate | None) -> list[GateResult]:
    results, mine = [], challenger.speed["peak_mb"]
    theirs = champion.speed["peak_mb"] if champion is not None else None
    if champion is not None:
        limit = None if theirs is None else gate.share * theirs + _NOISE_MB
        results.append(
            GateResult("memory beside the champion's, MB", False, "not measured", f"share {gate.share:g}")
            if limit is None
            else _most(f"memory beside the champion's {theirs:g}, MB", mine, round(limit, 1))
        )
    if gate.most_mb is not None:
        results.append(_most("memory, MB of one tile", mine, gate.most_mb))
    return results


def _card(challenger: Candidate) -> list[GateResult]:
    missing = missing_parts(challenger.spec, challenger.card)
    found = f"missing: {', '.join(missing)}" if missing else "complete"
    return [GateResult("model card", not missing, found, "complete", -float(len(missing)) if missing else None)]


def _leak(gate: LeakGate, challenger: Candidate) -> list[GateResult]:
    results = []
    for role, limit in (("training", gate.training), ("validation", gate.validation)):
        shared = challenger.evaluation.data["shared"][role]
        what, most = f"images known from {role}", f"at most {limit}"
        if shared is None:
            results.append(GateResult(what, False, "the package does not say what it was trained on", most))
        else:
            results.append(GateResult(what, shared <= limit, f"{shared}", most, float(limit - shared)))
    return results


def judge_shadow(gate: ShadowGate, found: ShadowEvidence) -> list[GateResult]:
    """Return the results of this gate alone: shadow runs go on while a challenger waits."""
    results = []
    if gate.images:
        results.append(_least("shadow, images compared", found.images, gate.images))
    if found.agreement is not None:
        results.append(_least(f"shadow, agreement on {found.images} image(s)", found.agreement, gate.agreement))
    return results


def _least(what: str, value: float, limit: float) -> GateResult:
    return GateResult(what, value >= limit, f"{value:.4g}", f"at least {limit:g}", value - limit)


def _most(what: str, value: float | None, limit: float) -> GateResult:
    if value is None:
        return GateResult(what, False, "not measured", f"at most {limit:g}")
    return GateResult(what, value <= limit, f"{value:.4g}", f"at most {limit:g}", limit - value)
