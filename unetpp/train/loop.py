"""The training loop: one process, one device, restartable; knows tensors and a folder, not recipes or registries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unetpp.losses import supervised_loss
from unetpp.metrics import Confusion
from unetpp.model import UNet, UNetPlusPlus
from unetpp.train.augment import PatchSource
from unetpp.train.checkpoint import load_checkpoint, save_checkpoint
from unetpp.train.config import TrainConfig
from unetpp.train.data import Sample


@dataclass(frozen=True)
class Epoch:
    """What one stretch between validations gave.

    Attributes:
        step: optimiser steps so far.
        loss: mean training loss of the stretch.
        iou: pooled IoU per class on the validation samples.
        groups: the same per group of samples.
        seconds: wall time of this process for the stretch, validation included.
    """

    step: int
    loss: float
    iou: tuple[float, ...]
    groups: dict[str, tuple[float, ...]]
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """The best averaged weights seen at a validation, and all validations in order."""

    weights: dict[str, Tensor]
    best: Epoch
    confusion: NDArray[np.int64]
    history: tuple[Epoch, ...]
    seconds: float = field(default=0.0)


class _State:
    """Everything that a checkpoint must hold for the next step to be the one that would have followed."""

    def __init__(self, network: UNetPlusPlus | UNet, source: PatchSource, config: TrainConfig) -> None:
        self.network, self.source = network, source
        self.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        matrices = [p for p in network.parameters() if p.ndim > 1]
        vectors = [p for p in network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.rate,
        )
        self.step = 0
        self.history: list[Epoch] = []
        self.best: tuple[dict[str, Tensor], NDArray[np.int64], int] | None = None

    def state_dict(self) -> dict[str, Any]:
        best = self.best
        return {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": self.source.random.bit_generator.state,
            "history": [asdict(epoch) for epoch in self.history],
            "best": None if best is None else (best[0], torch.from_numpy(best[1]), best[2]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.source.random.bit_generator.state = state["random"]
        self.history = [
            Epoch(**{**e, "iou": tuple(e["iou"]), "groups": {k: tuple(v) for k, v in e["groups"].items()}})
            for e in state["history"]
        ]
        best = state["best"]
        self.best = None if best is None else (best[0], best[1].numpy(), best[2])


def fit(
    network: UNetPlusPlus | UNet,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    config: TrainConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainResult:
    """Train until `config.steps`, continuing from `folder`'s checkpoint when there is one of this configuration.

    Args:
        network: what to train; left on `device` with its last weights.
        training, validation: samples; the best weights are those with the highest mean IoU over foreground classes.
        mean, std: per band: the network sees (x - mean) / std.
        folder: where checkpoint.pt is kept.
        device: a torch device.
        on_step: called with (step, loss); on_epoch: after each validation.

    Raises:
        DataError: the folder's checkpoint belongs to another configuration.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = _State(network, PatchSource(training, config), config)
    checkpoint = folder / "checkpoint.pt"
    load_checkpoint(checkpoint, state, config)
    norm = _Normalise(mean, std, device)
    start = tick = time.monotonic()
    losses: list[float] = []
    while state.step < config.steps:
        losses.append(_step(state, config, norm, device))
        if on_step is not None:
            on_step(state.step, losses[-1])
        if state.step % config.validate_every == 0 or state.step == config.steps:
            confusion, groups = evaluate(_averaged(state), validation, mean=mean, std=std, device=device, config=config)
            now = time.monotonic()
            iou = {name: tuple(map(float, value.iou)) for name, value in groups.items()}
            loss = float(np.mean(losses))
            epoch = Epoch(state.step, loss, tuple(map(float, confusion.iou)), iou, now - tick)
            tick, losses = now, []
            _keep_best(state, epoch, confusion)
            save_checkpoint(checkpoint, state, config)
            if on_epoch is not None:
                on_epoch(epoch)
    assert state.best is not None
    weights, matrix, index = state.best
    return TrainResult(weights, state.history[index], matrix, tuple(state.history), time.monotonic() - start)


@torch.no_grad()
def evaluate(
    network: UNetPlusPlus | UNet,
    samples: Sequence[Sample],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: TrainConfig,
    device: str = "cpu",
) -> tuple[Confusion, dict[str, Confusion]]:
    """Return the confusion over all samples, each predicted whole at full size, and per group."""
    network.eval()
    norm = _Normalise(mean, std, device)
    classes = max(2, network.config.classes)
    groups: dict[str, Confusion] = {}
    total = Confusion(classes)
    for sample in samples:
        pixels = torch.from_numpy(np.ascontiguousarray(sample.pixels)).permute(2, 0, 1)[None].to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = network(norm(pixels.float()))
        labels = (logits[:, 0] > 0) if logits.shape[1] == 1 else logits.argmax(1)
        groups.setdefault(sample.group, Confusion(classes)).update(sample.labels, labels[0].cpu().numpy())
    for confusion in groups.values():
        total.merge(confusion)
    return total, groups


class _Normalise:
    """(N, C, H, W) raw -> zero mean, unit deviation, channels last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32, device=device)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def _step(state: _State, config: TrainConfig, norm: _Normalise, device: str) -> float:
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate * schedule(state.step, config)
    pixels, labels = state.source.batch()
    pixels, labels = pixels.to(device), labels.to(device)
    state.network.train()
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16"):
        heads = state.network.heads(norm(pixels))
    loss = supervised_loss(heads, labels)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    state.optimizer.step()
    state.step += 1
    _average(state, config)
    return float(loss.detach())


def schedule(step: int, config: TrainConfig) -> float:
    """Return the learning rate's factor at a step: linear warm-up, then half a cosine to 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))


@torch.no_grad()
def _average(state: _State, config: TrainConfig) -> None:
    # Early on the average follows closely, or it would keep the random start for hundreds of steps.
    decay = min(config.ema, state.step / (state.step + 10))
    for name, value in state.network.state_dict().items():
        if value.is_floating_point():
            state.average[name].lerp_(value, 1 - decay)
        else:
            state.average[name].copy_(value)


def _averaged(state: _State) -> UNetPlusPlus | UNet:
    copy = deepcopy(state.network)
    copy.load_state_dict(state.average)
    return copy


def _keep_best(state: _State, epoch: Epoch, confusion: Confusion) -> None:
    state.history.append(epoch)
    best = state.history[state.best[2]] if state.best is not None else None
    if best is None or score(epoch.iou) >= score(best.iou):
        weights = {name: value.detach().cpu().clone() for name, value in state.average.items()}
        state.best = (weights, confusion.matrix.copy(), len(state.history) - 1)


def score(iou: Sequence[float]) -> float:
    """Return the figure that decides which weights are best: the foreground's IoU, or the mean over three and more."""
    return iou[1] if len(iou) == 2 else float(np.nanmean(iou))
