"""Each gate passes and fails where a person with pencil and paper would say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetpp.errors import ConfigError
from unetpp.package import load_package
from unetpp_workflows.evaluation import Evaluation, EvaluationData, evaluate
from unetpp_workflows.evaluation_page import _groups
from unetpp_workflows.gates import Candidate, GateResult, Gates, judge, load_gates, paired_difference
from unetpp_workflows.registry import resolve

CARD = "# ink\n**Use.** Tests. **Data.** None.\n\n## Limits\nAll.\n"
FACTS = {
    "source": "drawn",
    "licence": "CC0",
    "limits": "all",
    "training_fingerprint": "ab",
    "validation_fingerprint": "cd",
    "training_content": [],
    "validation_content": [],
}
SMUDGES = (0, 20, 50, 100, 100, 300)


@pytest.fixture
def candidate(
    ink_store: Callable[..., Path], ink_variant: Callable[..., Path], tmp_path: Path, known_speed: dict[str, Any]
) -> Callable[..., Candidate]:
    """Evaluate an ink network with a threshold: 112 is perfect, 60 misses the smudges of `SMUDGES` px per group."""
    data = EvaluationData.open(ink_store(*SMUDGES), "test")

    def make(threshold: int = 112, card: str = CARD, **facts: Any) -> Candidate:
        folder = ink_variant(tmp_path / f"p{threshold}{len(facts)}{len(card)}", threshold, card,
                             training={**FACTS, **facts}, metrics={"iou": 1})  # fmt: skip
        package = load_package(folder)
        return Candidate(package.spec, card, evaluate(resolve(folder), package, data), dict(known_speed))

    return make


def of(results: list[GateResult], words: str) -> GateResult:
    (found,) = [result for result in results if words in result.gate]
    return found


def test_a_worse_challenger_fails_by_what_pairs_of_groups_say(candidate: Callable[..., Candidate]) -> None:
    perfect, strict = candidate(112), candidate(60)
    gain, low, groups = paired_difference(perfect.evaluation, strict.evaluation, 0.95)
    ink = np.array([100 + smudge for smudge in SMUDGES])
    assert gain == pytest.approx(600 / ink.sum() - 1)
    assert list(groups.values()) == pytest.approx((100 / ink - 1).tolist())
    draws = np.random.default_rng(1).integers(6, size=(20_000, 6))  # an independent bootstrap of the same question
    assert low == pytest.approx(np.quantile(600 / ink[draws].sum(1) - 1, 0.05), abs=0.01)
    result = of(judge(Gates(), strict, perfect), "non-inferiority")
    assert not result.passed and result.by == pytest.approx(low + 0.01)
    assert of(judge(Gates(), perfect, strict), "non-inferiority").passed
    same = of(judge(Gates(), perfect, perfect), "non-inferiority")
    assert same.passed and same.by == pytest.approx(0.01)


def test_pairs_cancel_what_is_hard_for_both(candidate: Callable[..., Candidate]) -> None:
    """Two models that both miss the smudges differ by nothing, however much groups differ."""
    strict = candidate(60)
    low, high = strict.evaluation.figures["iou_low"]["ink"], strict.evaluation.figures["iou_high"]["ink"]
    assert high - low > 0.2
    assert of(judge(Gates(), candidate(61), strict), "non-inferiority").passed


def test_one_group_can_prove_nothing(candidate: Callable[..., Candidate]) -> None:
    whole = candidate(112)
    one = dict(list(whole.evaluation.groups.items())[:1])
    lone = dataclasses.replace(whole, evaluation=dataclasses.replace(whole.evaluation, groups=one))
    assert "needs 2 groups" in of(judge(Gates(), lone, lone), "non-inferiority").limit
    assert not of(judge(Gates(), lone, lone), "non-inferiority").passed
    assert not of(judge(Gates(), lone, None), "first").passed


def test_the_first_must_beat_a_constant_answer_and_has_nothing_to_compare_with(
    candidate: Callable[..., Candidate],
) -> None:
    found = judge(Gates(), candidate(60), None)
    assert of(found, "first").passed and not any("non-inferiority" in r.gate or "champion" in r.gate for r in found)
    blind = candidate(0)  # finds nothing: its IoU is 0, that of "ink everywhere" is above
    assert not of(judge(Gates(), blind, None), "first").passed


def test_floors_of_classes_and_groups(candidate: Callable[..., Candidate]) -> None:
    gates = Gates.model_validate(
        {"floors": {"classes": {"ink": 0.6, "blood": 0.1}, "strata": {"b": 0.9, "z": 0.1}, "group": 0.3}}
    )
    found = judge(gates, candidate(60), None)
    ink = of(found, "IoU of ink")
    assert not ink.passed and ink.by == pytest.approx(round(600 / 1170, 4) - 0.6)
    assert of(found, "IoU of blood").measured == "is no class of the model"
    # Without a table of kinds, every image of the store is a stratum of its own; b has 100 px of ink and 20 of smudge.
    (kind,) = [result for result in found if result.gate == "IoU of b"]
    assert not kind.passed and kind.by == pytest.approx(100 / 120 - 0.9)
    assert of(found, "IoU of z").measured.startswith("not measured; there is a, b, c")
    worst = of(found, "worst group (f)")
    assert not worst.passed and worst.measured == "0.25" and worst.by == pytest.approx(-0.05)


def test_images_without_the_class_in_which_none_is_found_are_no_failures(candidate: Callable[..., Candidate]) -> None:
    """... of floors, and are neither the worst group nor the worst image."""
    whole = candidate(112)
    nothing = {"confusion": [[3072, 0], [0, 0]]}
    images = [*whole.evaluation.images, {**whole.evaluation.images[0], "name": "none", "stratum": "none", **nothing}]
    groups = {**whole.evaluation.groups, "none": {**whole.evaluation.groups["a"], **nothing}}
    evaluation = dataclasses.replace(whole.evaluation, groups=groups, images=images)
    clean = dataclasses.replace(whole, evaluation=evaluation)
    gates = Gates.model_validate({"floors": {"group": 0.9, "strata": {"none": 0.1}}})
    found = judge(gates, clean, None)
    assert of(found, "worst group").passed and of(found, "worst group").measured == "1"
    assert of(found, "IoU of none").measured.startswith("not measured")
    assert "none" not in [row.name for row in _groups(evaluation.confusions())]
    # Without any image that shows the class, nothing is proven.
    blank = dataclasses.replace(clean, evaluation=dataclasses.replace(evaluation, groups={"x": nothing, "y": nothing}))
    result = of(judge(Gates(), blank, blank), "non-inferiority")
    assert not result.passed and "images that show the class" in result.limit


def test_speed_memory_and_calibration(candidate: Callable[..., Candidate]) -> None:
    champion, challenger = candidate(112), candidate(111)
    challenger.speed.update(mpx_per_second=1.5, peak_mb=200.0)
    gates = Gates.model_validate({"speed": {"least": 1.6}, "memory": {"most_mb": 150}, "calibration": {"ece": 0.0}})
    found = judge(gates, challenger, champion)
    assert not of(found, "share of the champion").passed and of(found, "share of the champion").by == pytest.approx(
        -0.05
    )
    assert not of(found, "Mpx/s").passed and of(found, "Mpx/s").by == pytest.approx(-0.1)
    beside = of(found, "memory beside")
    assert not beside.passed and beside.by == pytest.approx(1.25 * 100 + 32 - 200)
    assert not of(found, "MB of one tile").passed and not of(found, "calibration").passed
    off = Gates.model_validate({"off": ["speed", "memory", "calibration"]})
    assert {r.gate for r in judge(off, challenger, champion)} == {
        "non-inferiority", "model card", "images known from training", "images known from validation"
    }  # fmt: skip


def test_cards_must_be_complete_and_images_unknown(candidate: Callable[..., Candidate]) -> None:
    found = judge(Gates(), candidate(112, card="# ink\n**Use.** x\n", licence=""), None)
    card = of(found, "model card")
    assert card.measured == "missing: model.json: training.licence, card: data, card: limits" and card.by == -3
    evaluation: Evaluation = candidate(112).evaluation
    found = judge(Gates(), candidate(112, training_fingerprint=evaluation.data["fingerprint"]), None)
    assert not of(found, "known from training").passed and of(found, "known from training").by == -6
    assert of(found, "known from validation").passed
    silent = judge(Gates(), candidate(112, training_fingerprint=None, training_content=None), None)
    assert "does not say" in of(silent, "known from training").measured


def test_a_gates_file_is_read_and_wrong_keys_are_named(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text("off = ['speed']\nnon_inferiority = { margin = 0.02 }\n")
    assert load_gates(file).non_inferiority.margin == 0.02 and load_gates(file).off == ("speed",)
    file.write_text("[non_inferiority]\nmargins = 0.02\n")
    with pytest.raises(ConfigError, match=r"non_inferiority.margins.*did you mean 'non_inferiority.margin'"):
        load_gates(file)
    assert load_gates(None) == Gates()
    for key in ("classes", "strata"):
        for floor in ("7", "-0.1", "nan"):
            file.write_text(f"[floors]\n{key} = {{ ink = {floor} }}\n")
            with pytest.raises(ConfigError, match=rf"floors.{key}.ink = {floor}"):
                load_gates(file)
