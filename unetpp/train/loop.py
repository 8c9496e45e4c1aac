"""The training loop of one worker on one device, restartable; knows tensors and a folder, not recipes or schedulers."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unetpp.allocation import keep_freed_memory
from unetpp.errors import DataError, TrainingError
from unetpp.losses import supervised_loss
from unetpp.metrics import Confusion, judged_iou
from unetpp.model.batch_norm import synchronise
from unetpp.train.augment import patches
from unetpp.train.checkpoint import Facts, load_checkpoint, save_checkpoint
from unetpp.train.config import TrainConfig
from unetpp.train.normalise import Normalise
from unetpp.train.precision import settled
from unetpp.train.preconditions import Network, check_device, check_images, check_normalisation, check_numbers
from unetpp.train.ranks import Ranks
from unetpp.train.sampling import Frames, Sampler, batches
from unetpp.train.source import Source
from unetpp.train.validate import evaluate


@dataclass(frozen=True)
class Epoch:
    """What one stretch between validations gave.

    Attributes:
        step: optimiser steps so far.
        loss: mean training loss of the stretch.
        iou: pooled IoU per class on the validation images.
        groups: the same per stratum of images.
        seconds: wall time of the stretch, validation included.
        waited: seconds of it in which the device waited for patches.
    """

    step: int
    loss: float
    iou: tuple[float, ...]
    groups: dict[str, tuple[float, ...]]
    seconds: float
    waited: float = 0.0


@dataclass(frozen=True)
class TrainResult:
    """The best averaged weights seen at a validation, and all validations in order.

    Attributes:
        best: None (and no weights) where training stopped before its first validation.
        finished: False where training stopped because its time was up; the same call continues it.
    """

    weights: dict[str, Tensor]
    best: Epoch | None
    confusion: NDArray[np.int64]
    history: tuple[Epoch, ...]
    seconds: float = field(default=0.0)
    finished: bool = True


class _State:
    """Everything that a checkpoint must hold for the next step to be the one that would have followed.

    Patches and augmentation depend on the step's number alone, and the networks draw no random numbers.

    Args:
        shown: per class of the network, whether the validation images have it.
    """

    def __init__(self, network: Network, config: TrainConfig, shown: Sequence[bool]) -> None:
        self.network, self._shown = network, shown
        self.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        matrices = [p for p in network.parameters() if p.ndim > 1]
        vectors = [p for p in network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.rate,
        )
        self.step = 0
        self.losses: list[float] = []
        self.seconds = self.waited = 0.0
        self.history: list[Epoch] = []
        self.best: tuple[dict[str, Tensor], NDArray[np.int64], int] | None = None

    def state_dict(self) -> dict[str, Any]:
        best = self.best
        return {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "stretch": (self.losses, self.seconds, self.waited),
            "history": [asdict(epoch) for epoch in self.history],
            "best": None if best is None else (best[0], torch.from_numpy(best[1]), best[2]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.losses, self.seconds, self.waited = state["stretch"]
        self.history = [
            Epoch(**{**e, "iou": tuple(e["iou"]), "groups": {k: tuple(v) for k, v in e["groups"].items()}})
            for e in state["history"]
        ]
        best = state["best"]
        self.best = None if best is None else (best[0], best[1].numpy(), best[2])

    def add_epoch(self, groups: dict[str, tuple[float, ...]], confusion: Confusion) -> Epoch:
        """End the stretch; where it is the best so far, keep the averaged weights."""
        loss = float(np.mean(self.losses))
        epoch = Epoch(self.step, loss, tuple(map(float, confusion.iou)), groups, self.seconds, self.waited)
        self.losses, self.seconds, self.waited = [], 0.0, 0.0
        self.history.append(epoch)
        best = self.history[self.best[2]] if self.best is not None else None
        if best is None or self._score(epoch) >= self._score(best):
            weights = {name: value.detach().cpu().clone() for name, value in self.average.items()}
            self.best = (weights, confusion.matrix.copy(), len(self.history) - 1)
        return epoch

    def stale(self) -> int:
        """Return how many validations have passed since one was better than all before it."""
        scores = [self._score(epoch) for epoch in self.history]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def _score(self, epoch: Epoch) -> float:
        return score(judged_iou(epoch.iou, self._shown))


class _Heads(nn.Module):
    """All heads as a module's forward, which is what wrappers for several workers and compilers take."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network.heads(x)


@contextmanager
def _fits_memory(what: str, device: str) -> Iterator[None]:
    """Say in a `TrainingError` what took more memory than there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not short:
            raise
        raise TrainingError(
            f"{what} does not fit into the memory of {device}; give a larger train.accumulate, or a smaller "
            "train.batch or train.patch"
        ) from error


class _Trainer:
    """One worker: its share of every step, and the validations."""

    def __init__(
        self, state: _State, training: Source, validation: Source, config: TrainConfig, norm: Normalise, ranks: Ranks
    ) -> None:
        self.state, self.config, self.norm, self.ranks = state, config, norm, ranks
        self._validation = validation
        self._precision = settled(config.precision, norm.device, ranks)
        heads = ranks.wrap(_Heads(state.network))
        self._heads = torch.compile(heads) if config.compile else heads
        part = config.batch // config.accumulate
        self._parts = [[k * part + i for i in ranks.share(part)] for k in range(config.accumulate)]
        self._frames = batches(Sampler(training, config), range(state.step, config.steps), self._parts)
        self._tick = time.monotonic()

    @property
    def done(self) -> bool:
        """All steps made, or no better validation for too long."""
        return self.state.step >= self.config.steps or 0 < self.config.patience <= self.state.stale()

    @property
    def due(self) -> bool:
        """Say whether a validation follows the last step."""
        return self.state.step % self.config.validate_every == 0 or self.state.step == self.config.steps

    def step(self) -> float:
        """Make one optimiser step and return its loss."""
        state, config = self.state, self.config
        for group in state.optimizer.param_groups:
            group["lr"] = config.rate * schedule(state.step, config)
        state.network.train()
        state.optimizer.zero_grad()
        loss = 0.0
        for number in range(config.accumulate):
            with _fits_memory(f"step {state.step + 1}", self.norm.device):
                loss += self._part(self._next(), last=number == config.accumulate - 1)
        norm = float(nn.utils.clip_grad_norm_(state.network.parameters(), config.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            # One such step leaves no weight that is a number, and every later one looks like a result.
            raise TrainingError(
                f"step {state.step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}; give a smaller "
                f"rate than {config.rate:g}, or precision fp32"
            )
        state.optimizer.step()
        state.step += 1
        _average(state, config)
        state.losses.append(loss)
        return loss

    def validate(self) -> tuple[Epoch, Network]:
        """Validate the averaged weights over all workers; returns the network that has them, too."""
        state = self.state
        average = deepcopy(state.network)
        average.load_state_dict(state.average)
        total, groups = evaluate(average, self._validation, self.norm, precision=self._precision, ranks=self.ranks)
        self._count_time()
        iou = {name: tuple(map(float, confusion.iou)) for name, confusion in groups.items()}
        return state.add_epoch(iou, total), average

    def save(self, path: Path, facts: Facts) -> None:
        self._count_time()
        if self.ranks.rank == 0:
            save_checkpoint(path, self.state, self.config, facts)

    def close(self) -> None:
        self._frames.close()
        if self.ranks.world > 1:
            # A wrapper that outlives its process group can hang for ever when it is collected.
            del self._heads
            gc.collect()

    def any(self, condition: bool) -> bool:
        """Say whether it holds in any worker."""
        return bool(self.ranks.sum(np.array([condition]), self.norm.device)[0])

    def _part(self, frames: Frames, *, last: bool) -> float:
        """Add one part's gradients."""
        config, device = self.config, self.norm.device
        pixels, labels, objects = patches(frames, config.patch, config.augment, device)
        # Gradients travel between workers once per step.
        quiet = nullcontext() if last or not hasattr(self._heads, "no_sync") else self._heads.no_sync()
        with quiet:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self._precision == "bf16"):
                heads = self._heads(self.norm(pixels))
            loss = supervised_loss(heads, labels, config.loss, objects=objects, reduce=self.ranks.reduce)
            (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()) / config.accumulate

    def _next(self) -> Frames:
        start = time.monotonic()
        _, frames = next(self._frames)
        self.state.waited += time.monotonic() - start
        return frames

    def _count_time(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._tick
        self._tick = now


def fit(
    network: Network,
    training: Source,
    validation: Source,
    config: TrainConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path,
    device: str = "cpu",
    ranks: Ranks | None = None,
    seconds: float = math.inf,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Epoch, Network], None] | None = None,
) -> TrainResult:
    """Train until `config.steps`, continuing from `folder`'s checkpoint when there is one of this configuration.

    Args:
        network: what to train; left on `device` with its last weights.
        training, validation: labelled images; the best weights are those with the highest `judged_iou` on the latter.
        mean, std: per band: the network sees (x - mean) / std.
        folder: where checkpoint.pt is kept; the same for all workers.
        device: a torch device.
        ranks: this worker's place among several; each computes its share of every batch. The first one writes.
        seconds: after so long, training stops behind a checkpoint and the result says that it is not finished; 0 only
            reads what there is.
        on_step: called with (step, loss); on_epoch: after each validation, with the network that was validated. Both
            in the first worker only.

    Raises:
        DataError: the folder's checkpoint belongs to another configuration, other images or another network, workers
            see different folders, or images have no label, or labels of classes that the network has not.
        ConfigError: there is no such device, a part of a batch has fewer patches than there are workers, patches are
            too small or not what an augmentation is for, or mean and std are not those of the network's bands.
        TrainingError: the loss or its gradient is no number any more, or memory is short; the checkpoint is of before.
        OutputError: the checkpoint cannot be written.
    """
    ranks = ranks or Ranks()
    check_device(device)
    check_numbers(network, training, config, ranks)
    check_images(network, training, validation)
    check_normalisation(network, mean, std)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device == "cpu":
        keep_freed_memory()
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    synchronise(network, ranks.world > 1)
    state, norm = _State(network, config, _shown(network, validation)), Normalise(mean, std, device)
    checkpoint, facts = folder / "checkpoint.pt", _facts(network, training, validation, norm)
    load_checkpoint(checkpoint, state, config, facts)
    _agree(state.step, ranks, device)
    trainer = _Trainer(state, training, validation, config, norm, ranks)
    start = time.monotonic()
    late = seconds <= 0
    try:
        while not trainer.done and not late:
            loss = trainer.step()
            if on_step is not None and ranks.rank == 0:
                on_step(state.step, loss)
            late = math.isfinite(seconds) and trainer.any(time.monotonic() - start > seconds)
            validated = trainer.validate() if trainer.due else None
            # Told before it is saved: killed between the two, a training tells of it again, else it never would.
            if validated is not None and on_epoch is not None and ranks.rank == 0:
                on_epoch(*validated)
            if validated is not None or late:
                trainer.save(checkpoint, facts)
    finally:
        trainer.close()
    return _result(state, trainer.done, time.monotonic() - start)


def _facts(network: Network, training: Source, validation: Source, norm: Normalise) -> Facts:
    """Return what a checkpoint must have been made from to be continued."""
    return {
        "training set": training.fingerprint,
        "validation set": validation.fingerprint,
        "normalisation": norm.values,
        "network": (type(network).__name__, asdict(network.config)),
    }


def _shown(network: Network, source: Source) -> list[bool]:
    """Return for each class of the network whether the images have it."""
    there = np.flatnonzero(source.blocks.counts.any(0))
    return [k in there for k in range(max(2, network.config.classes))]


def _result(state: _State, finished: bool, seconds: float) -> TrainResult:
    history = tuple(state.history)
    if state.best is None:
        return TrainResult({}, None, np.zeros((0, 0), np.int64), history, seconds, finished)
    weights, matrix, index = state.best
    return TrainResult(weights, history[index], matrix, history, seconds, finished)


def _agree(step: int, ranks: Ranks, device: str) -> None:
    """Raise `DataError` unless every worker continues from the same step."""
    steps = np.zeros(ranks.world)
    steps[ranks.rank] = step
    steps = ranks.sum(steps, device)
    if steps.min() != steps.max():
        found = ", ".join(str(int(value)) for value in steps)
        raise DataError(f"workers found checkpoints of steps {found}; give an output folder that all of them share")


def schedule(step: int, config: TrainConfig) -> float:
    """Return the learning rate's factor at a step: half a cosine from 1 at the first step to 0, times a linear warm-up.

    A warm-up that is long beside all steps leaves no step the whole rate: half of it where it takes half of them.
    """
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


def score(judged: float) -> float:
    """Return the figure that decides which weights are best: `judged_iou`, and 0 where nothing can be judged, so that
    any weights that can be are better."""
    return 0.0 if math.isnan(judged) else judged
