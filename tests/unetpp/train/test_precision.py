"""Training multiplies in bf16 only where that is an instruction of every worker's processor."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

import unetpp.train.precision
from tests.ranks import on_ranks
from tests.unetpp.train.test_loop import CONFIG, run
from unetpp.train import Ranks
from unetpp.train.precision import settled


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_what_the_processor_has(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unetpp.train.precision, "cpu_has_bf16", lambda: has)
    assert settled("auto", "cpu") == ("bf16" if has else "fp32")
    assert (settled("fp32", "cpu"), settled("bf16", "cpu")) == ("fp32", "bf16")


def test_who_asks_for_emulation_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(unetpp.train.precision, "cpu_has_bf16", lambda: False)
    with caplog.at_level(logging.WARNING):
        settled("auto", "cpu")
        settled("fp32", "cpu")
        assert not caplog.records
        settled("bf16", "cpu")
    assert "emulating it is many times slower" in caplog.text


@pytest.mark.parametrize("has", [True, False])
def test_auto_makes_the_steps_of_the_precision_that_it_is(
    has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unetpp.train.precision, "cpu_has_bf16", lambda: has)
    losses = {
        name: [epoch.loss for epoch in run(tmp_path / name, replace(CONFIG, steps=4, precision=name)).history]
        for name in ("auto", "bf16", "fp32")
    }
    assert losses["bf16"] != losses["fp32"]
    assert losses["auto"] == losses["bf16" if has else "fp32"]


def test_a_training_goes_on_on_another_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of time are had on different machines; the checkpoint of one fits the other."""
    config = replace(CONFIG, precision="auto")
    monkeypatch.setattr(unetpp.train.precision, "cpu_has_bf16", lambda: True)
    assert not run(tmp_path, config, seconds=1e-9).finished
    monkeypatch.setattr(unetpp.train.precision, "cpu_has_bf16", lambda: False)
    assert run(tmp_path, config).finished


def one_without(rank: int) -> str:
    unetpp.train.precision.cpu_has_bf16 = lambda: rank == 0  # type: ignore[assignment]
    return settled("auto", "cpu", Ranks.of_process_group())


def test_workers_of_different_machines_agree() -> None:
    assert on_ranks(one_without) == ["fp32", "fp32"]
