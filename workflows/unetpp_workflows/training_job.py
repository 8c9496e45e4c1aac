"""One worker's part of a training: from a resolved recipe to fitted weights; knows no scheduler and no registry.

output/recipe.json      the resolved recipe
output/start/           the model that training starts from, where it does
output/checkpoint.pt    the state that the same command continues from
output/progress.jsonl   one line per logged step and per validation, written by the first worker
output/overlays/        validation samples with truth and prediction, one picture per validation
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import output_errors
from unetpp.errors import ConfigError, EngineError
from unetpp.train import Epoch, Ranks, TrainResult, fit
from unetpp_workflows.overlays import draw_overlays
from unetpp_workflows.recipe import Recipe
from unetpp_workflows.starting_point import build, open_started, starting_point

if TYPE_CHECKING:
    from unetpp.model import UNet, UNetPlusPlus

RECIPE, PROGRESS, OVERLAYS = "recipe.json", "progress.jsonl", "overlays"
_LOG_STEPS = 10


@dataclass(frozen=True)
class TrainingJob:
    """What every worker needs to know; its paths must be the same on all nodes.

    Attributes:
        output: folder of the training.
        store: the training store.
        device: "cpu", "cuda", or "auto": a GPU where torch sees one.
        seconds: after so long a worker stops behind a checkpoint.
    """

    output: Path
    store: Path
    device: str = "auto"
    seconds: float = math.inf

    def recipe(self) -> Recipe:
        return Recipe.model_validate_json((self.output / RECIPE).read_text(encoding="utf-8"))


def work(
    job: TrainingJob,
    ranks: Ranks | None = None,
    *,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainResult:
    """Train in this process, continuing from the output's checkpoint; errors as `unetpp.train.fit`."""
    import torch

    recipe = job.recipe()
    start = starting_point(recipe, job.output)
    data = open_started(job.store, start)
    torch.manual_seed(recipe.train.seed)
    journal = Journal(job.output / PROGRESS)

    def step(number: int, loss: float) -> None:
        if number % _LOG_STEPS == 0 or number == 1:
            journal.write({"step": number, "loss": loss})
        if on_step is not None:
            on_step(number, loss)

    def epoch(found: Epoch, validated: UNetPlusPlus | UNet) -> None:
        draw_overlays(validated, data, recipe, job.output / OVERLAYS / f"step_{found.step:06d}.jpg")
        journal.write({"epoch": asdict(found)})
        if on_epoch is not None:
            on_epoch(found)

    return fit(
        build(recipe, len(data.bands), start),
        data.training,
        data.validation,
        recipe.train,
        mean=data.mean,
        std=data.std,
        folder=job.output,
        device=device(job.device),
        ranks=ranks,
        seconds=job.seconds,
        on_step=step,
        on_epoch=epoch,
    )


def device(asked: str) -> str:
    """Return "cuda" or "cpu".

    Raises:
        ConfigError: another device was asked for. EngineError: torch sees no GPU on this machine.
    """
    import torch

    if asked not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {asked!r}: choose auto, cpu or cuda")
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise EngineError("device cuda: torch sees no GPU here; see unetpp doctor, or choose cpu")
    return ("cuda" if there else "cpu") if asked == "auto" else asked


class Journal:
    """Lines of JSON that one process appends and another reads while they come.

    A process that is killed, or a full disk, can leave half a line: it is skipped, and never joined to the next one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def write(self, entry: dict[str, Any]) -> None:
        with output_errors(self._path), self._path.open("ab+") as file:
            if end := file.tell():
                file.seek(end - 1)
            torn = end > 0 and file.read(1) != b"\n"
            file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the entries that came since the last call; a line that is still being written waits."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                yield entry
