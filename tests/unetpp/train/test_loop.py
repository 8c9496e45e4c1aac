"""Training learns what can be learnt, continues exactly after being killed, and refuses a stranger's checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unetpp.errors import DataError
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.train import Sample, TrainConfig, TrainResult, fit
from unetpp.train.augment import PatchSource, warp
from unetpp.train.config import AugmentConfig
from unetpp.train.loop import schedule

MEAN, STD = (128.0, 128.0, 128.0), (60.0, 60.0, 60.0)
CONFIG = TrainConfig(
    steps=12, batch=2, patch=32, warmup=2, validate_every=3, ema=0.5, precision="fp32", threads=1, class_aware=0.5
)


def squares(count: int, seed: int) -> list[Sample]:
    """Bright squares on dark noise: class 1 where it is bright."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        labels = np.zeros((48, 40), np.uint8)
        y, x = random.integers(4, 24, 2)
        labels[y : y + 16, x : x + 12] = 1
        pixels = random.integers(20, 60, (48, 40, 3)) + labels[..., None] * 150
        labels[:2] = 255
        samples.append(Sample(f"s{index}", "even" if index % 2 == 0 else "odd", pixels.astype(np.uint8), labels))
    return samples


def run(folder: Path, config: TrainConfig = CONFIG, slow: float = 0.0) -> TrainResult:
    torch.manual_seed(0)
    network = UNetPlusPlus(GridConfig(filters=(8, 12, 16)))
    return fit(
        network, squares(6, 0), squares(3, 1), config, mean=MEAN, std=STD, folder=folder,
        on_epoch=lambda epoch: (print(epoch.step, flush=True), time.sleep(slow))[0],
    )  # fmt: skip


def test_it_learns(tmp_path: Path) -> None:
    result = run(tmp_path, replace(CONFIG, steps=100, validate_every=50, rate=1e-2))
    assert result.best.iou[1] > 0.9
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


def test_schedule_warms_up_and_ends_at_zero() -> None:
    config = replace(CONFIG, steps=100, warmup=10)
    assert schedule(0, config) == pytest.approx(0.1)
    assert schedule(9, config) == pytest.approx(1.0, abs=0.03)
    assert schedule(50, config) == pytest.approx(0.5)
    assert schedule(99, config) < 0.001


def test_warp_without_change_is_the_crop() -> None:
    sample = squares(1, 0)[0]
    pixels, labels = warp(sample, 16, 20.0, 18.0, 1.0, 0.0, 1.0)
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0).numpy(), sample.pixels[12:28, 10:26], atol=0.01)
    np.testing.assert_array_equal(labels[0].numpy(), sample.labels[12:28, 10:26])


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_quarter_turns_move_image_and_labels_together(quarter: int, mirror: float) -> None:
    sample = squares(1, 3)[0]
    pixels, labels = warp(sample, 16, 20.0, 18.0, 1.0, quarter * np.pi / 2, mirror)
    crop = sample.labels[12:28, 10:26]
    turned = [np.rot90(f, k) for k in range(4) for f in (crop, crop[:, ::-1])]
    assert any(np.array_equal(labels[0].numpy(), t) for t in turned)
    bright = (pixels[0, 0].numpy() > 110).astype(int)
    counted = labels[0].numpy() != 255
    np.testing.assert_array_equal(bright[counted], labels[0].numpy()[counted])


def test_batches_depend_on_the_generator_alone() -> None:
    first, second = PatchSource(squares(4, 0), CONFIG), PatchSource(squares(4, 0), CONFIG)
    first.batch()
    second.random.bit_generator.state = first.random.bit_generator.state
    for a, b in zip(first.batch(), second.batch(), strict=True):
        assert torch.equal(a, b)


def test_patches_stay_in_range_and_keep_labels() -> None:
    config = replace(CONFIG, patch=40, augment=AugmentConfig(noise=1.0, blur=1.0))
    pixels, labels = PatchSource(squares(4, 0), config).batch()
    assert pixels.shape == (2, 3, 40, 40) and pixels.min() >= 0 and pixels.max() <= 255
    assert set(labels.unique().tolist()) <= {0, 1, 255}
