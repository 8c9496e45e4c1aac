"""Training learns what can be learnt, continues exactly after being killed, and refuses a stranger's checkpoint."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unetpp.train.shapes import squares
from unetpp.errors import ConfigError, DataError, OutputError, TrainingError
from unetpp.geometry import Box
from unetpp.losses import LossConfig
from unetpp.metrics import Confusion
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.train import ArraySource, AugmentConfig, TrainConfig, TrainResult, fit, loop
from unetpp.train.loop import _State, schedule, score

MEAN, STD = (128.0, 128.0, 128.0), (60.0, 60.0, 60.0)
CONFIG = TrainConfig(
    steps=12, batch=2, patch=32, warmup=2, validate_every=3, ema=0.5, precision="fp32", threads=1, class_aware=0.5
)


def run(folder: Path, config: TrainConfig = CONFIG, slow: float = 0.0, **options: Any) -> TrainResult:
    torch.manual_seed(0)
    network = UNetPlusPlus(GridConfig(filters=(8, 12, 16)))
    return fit(
        network, squares(6, 0), squares(3, 1), config, mean=MEAN, std=STD, folder=folder,
        on_epoch=lambda epoch, _: (print(epoch.step, flush=True), time.sleep(slow))[0], **options,
    )  # fmt: skip


def test_it_learns(tmp_path: Path) -> None:
    result = run(tmp_path, replace(CONFIG, steps=100, validate_every=50, rate=1e-2))
    assert result.best is not None and result.best.iou[1] > 0.9 and result.finished
    assert result.history[-1].loss < result.history[0].loss
    assert set(result.best.groups) == {"even", "odd"}


def test_killed_training_continues_exactly(tmp_path: Path) -> None:
    """SIGKILL at random moments, then rerun: the losses and the weights are those of an undisturbed run."""
    whole = run(tmp_path / "whole")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import importlib.util as u; "
        f"spec = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(spec); "
        "spec.loader.exec_module(t); from pathlib import Path; "
        f"t.run(Path({str(tmp_path / 'killed')!r}), slow=0.3)"
    )
    for validations in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(validations):
            assert process.stdout.readline().strip().isdigit()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    resumed = run(tmp_path / "killed")
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    assert [e.iou for e in resumed.history] == [e.iou for e in whole.history]
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(DataError, match="other settings"):
        run(tmp_path, replace(CONFIG, rate=1e-3))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"checkpoint\.pt does not read [^_]*; remove it to start anew"):
            run(tmp_path)


def test_a_step_that_needs_more_memory_than_there_is_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for allocate in (lambda *_: torch.empty(2**50), lambda *_: np.empty(2**50)):
        monkeypatch.setattr(loop, "patches", allocate)
        with pytest.raises(TrainingError, match=r"step \d+ does not fit into the memory of cpu; give a larger"):
            run(tmp_path)
    monkeypatch.setattr(loop, "patches", lambda *_: torch.ones(2).reshape(3))
    with pytest.raises(RuntimeError, match="shape"):
        run(tmp_path)


def test_a_loss_that_is_no_number_ends_training_before_any_weight_is_lost(tmp_path: Path) -> None:
    wild = replace(CONFIG, rate=1e12, warmup=0, validate_every=1)
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .* give a smaller rate than 1e\+12"):
        run(tmp_path, wild)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert all(value.isfinite().all() for value in saved["network"].values())


@pytest.mark.parametrize(
    "changes",
    [{"rate": -1.0}, {"clip": 0.0}, {"decay": -0.1}, {"warmup": -1}, {"seed": -1}, {"threads": -1},
     {"patience": -1}, {"class_aware": 5.0}, {"seed": 2**63}, {"balance": math.nan}, {"balance": math.inf},
     {"rate": math.inf}],
)  # fmt: skip
def test_numbers_that_no_training_can_have_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=f"^{name} = .*: give "):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"blur_sigma": -1.0},
        {"elastic": -1.0},
        {"elastic_nodes": 1},
        {"noise": 2.0},
        {"rotate": -0.5},
        {"scale": (0.5, math.inf)},
    ],
)
def test_changes_that_no_patch_can_have_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=f"^{name} = .*: give "):
        AugmentConfig(**changes)


def test_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    """A deleted and differently split store must not go on from weights that saw its validation images."""
    run(tmp_path)

    def other(training: ArraySource, validation: ArraySource, mean: Any = MEAN, filters: Any = (8, 12, 16)) -> None:
        network = UNetPlusPlus(GridConfig(filters=filters))
        fit(network, training, validation, CONFIG, mean=mean, std=STD, folder=tmp_path, seconds=0)

    other(squares(6, 0), squares(3, 1))
    for arguments, what in (
        ((squares(3, 1), squares(6, 0)), "training set and validation set"),
        ((squares(6, 0), squares(3, 2)), "validation set"),
        ((squares(6, 0), squares(3, 1), (100.0, 128.0, 128.0)), "normalisation"),
        ((squares(6, 0), squares(3, 1), MEAN, (8, 12)), "network"),
    ):
        with pytest.raises(DataError, match=f"made with another {what}; remove it"):
            other(*arguments)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    """The file size limit stands for a full disk: one line, no half file, and the run goes on from where it was."""
    half = replace(CONFIG, steps=12)
    run(tmp_path, half, seconds=1e-9)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*checkpoint.pt: .*run the same command again"):
            run(tmp_path, half)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [e.loss for e in run(tmp_path, half).history] == [e.loss for e in run(tmp_path / "whole", half).history]


def test_the_best_weights_are_those_that_can_be_judged() -> None:
    """A class that the validation images lack decides nothing, found in a pixel or not."""
    assert score(0.4) == 0.4 and score(float("nan")) == 0.0
    state = _State(UNetPlusPlus(GridConfig(classes=3, filters=(2, 2))), CONFIG, (True, True, False))
    for matrix in ([[80, 20, 0], [20, 80, 0], [0, 0, 0]], [[90, 9, 1], [10, 90, 0], [0, 0, 0]]):
        state.losses = [1.0]
        state.add_epoch({}, Confusion.from_state(np.array(matrix)))
    assert state.best is not None and state.best[2] == 1 and state.stale() == 0


def test_schedule_warms_up_and_ends_at_zero() -> None:
    config = replace(CONFIG, steps=100, warmup=10)
    assert schedule(0, config) == pytest.approx(0.1)
    assert schedule(9, config) == pytest.approx(1.0, abs=0.03)
    assert schedule(50, config) == pytest.approx(0.5)
    assert schedule(99, config) < 0.001


def test_training_in_slices_is_the_same_training(tmp_path: Path) -> None:
    """Time runs out after every step: the slices together make the undisturbed run."""
    whole = run(tmp_path / "whole")
    for step in range(1, 12):
        part = run(tmp_path / "parts", seconds=1e-9)
        assert not part.finished and len(part.history) == step // 3
    last = run(tmp_path / "parts", seconds=1e-9)
    assert last.finished and [e.loss for e in last.history] == [e.loss for e in whole.history]
    assert all(torch.equal(last.weights[name], value) for name, value in whole.weights.items())
    read = run(tmp_path / "parts", seconds=0.0)
    assert read.finished and read.history == last.history


def test_no_time_only_reads(tmp_path: Path) -> None:
    result = run(tmp_path, seconds=0.0)
    assert result.best is None and not result.finished and list(tmp_path.iterdir()) == []


def test_parts_of_a_batch_give_nearly_its_gradient(tmp_path: Path) -> None:
    """Without batch norm and with a loss that is a mean over pixels the parts are exact but for rounding."""
    config = replace(CONFIG, steps=4, batch=4, validate_every=4, loss=LossConfig(terms=(("ce", 1.0),)), rate=1e-3)
    results = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        network = UNetPlusPlus(GridConfig(filters=(8, 12), norm="none"))
        source = counted_everywhere()
        fit(
            network, source, source, replace(config, accumulate=parts), mean=MEAN, std=STD, folder=tmp_path / str(parts)
        )
        results.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=2e-6, rtol=0)


def counted_everywhere() -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return ArraySource([("a", "g", pixels, (pixels[..., 0] > 100).astype(np.uint8), None)], 2)


def test_a_validation_that_was_not_told_of_is_told_of_again(tmp_path: Path) -> None:
    told: list[int] = []

    def go() -> TrainResult:
        network = UNetPlusPlus(GridConfig(filters=(8, 12, 16)))
        return fit(
            network, squares(6, 0), squares(3, 1), CONFIG, mean=MEAN, std=STD, folder=tmp_path, on_epoch=tell
        )  # fmt: skip

    def tell(epoch: Any, _: Any) -> None:
        if epoch.step == 6 and not told.count(0):
            told.append(0)
            raise KeyboardInterrupt
        told.append(epoch.step)

    with pytest.raises(KeyboardInterrupt):
        go()
    assert [epoch.step for epoch in go().history] == [3, 6, 9, 12]
    assert told == [3, 0, 6, 9, 12]


def test_a_score_that_stands_still_is_no_better_one(tmp_path: Path) -> None:
    """Where nothing is found, every validation has the score 0."""
    pixels = squares(1, 1).read(0, Box(0, 0, 48, 40)).pixels
    nothing = ArraySource([("a", "a", pixels, np.zeros((48, 40), np.uint8), None)], classes=2)
    result = fit(
        UNetPlusPlus(GridConfig(filters=(8, 12, 16))), squares(6, 0), nothing, replace(CONFIG, steps=60, patience=2),
        mean=MEAN, std=STD, folder=tmp_path,
    )  # fmt: skip
    assert [epoch.step for epoch in result.history] == [3, 6, 9] and result.finished


def test_patience_ends_training_and_stays_ended(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, rate=1e-9, patience=2)
    result = run(tmp_path, config)
    assert result.finished and result.best is not None
    assert len(result.history) < 20 and result.history[-1].step - result.best.step == 2 * CONFIG.validate_every
    assert run(tmp_path, config).history == result.history
