"""Runs a recipe from data to a recorded and registered model under a progress display; computes nothing itself.

recipe -> training job -> workers (this process, or Ray) -> model package -> MLflow run -> registered version
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unetpp.durable import write_file
from unetpp.errors import ConfigError, DataError, RegistryError
from unetpp.model import halo
from unetpp.package import SPEC, load_package
from unetpp.train.augment import check_augment
from unetpp.train.job import CHECKPOINT, config_from
from unetpp.train.preconditions import check_batch
from unetpp_workflows.cli_options import DONE, PART_FAILED
from unetpp_workflows.figures import plain
from unetpp_workflows.mlflow_store import Silence
from unetpp_workflows.recipe import Recipe, architecture, check_network, load_recipe
from unetpp_workflows.registry import check_alias
from unetpp_workflows.starting_point import StartingPoint, build, check_unseen, open_started, starting_point, with_start
from unetpp_workflows.training_data import TrainingData, check_surrounded, prepared_store
from unetpp_workflows.training_job import OVERLAYS, PROGRESS, RECIPE, TrainingJob, device, work
from unetpp_workflows.training_result import LEVELS
from unetpp_workflows.training_tracking import TrainingRun

if TYPE_CHECKING:
    from unetpp.package import Package
    from unetpp.train import TrainResult

HISTORY = "history.json"
TIME_UP = 75
"""Exit code of a training that stopped because its time was up (the system's "temporary failure": try again)."""


@dataclass(frozen=True)
class TrainOptions:
    """How a recipe is run; changes nothing of what it computes but for the number of workers' rounding.

    Attributes:
        workers: processes, one CPU or GPU each; more than one run on Ray.
        least: go on with as few as this when nodes vanish.
        address: of a running Ray cluster.
        device: "auto", "cpu" or "cuda".
        store: a training store that `unetpp prepare` made, instead of the recipe's own data.
        minutes: stop behind a checkpoint after so long.
        tracking_uri: MLflow store.
        record: write an MLflow run.
        register: register the model package; `alias` is then set on the new version.

    Raises:
        ConfigError: options that contradict each other.
    """

    workers: int = 1
    least: int | None = None
    address: str | None = None
    device: str = "auto"
    store: Path | None = None
    minutes: float = math.inf
    tracking_uri: str | None = None
    record: bool = True
    register: bool = True
    alias: str | None = None

    def __post_init__(self) -> None:
        if self.alias is not None and not self.register:
            raise ConfigError(f"alias {self.alias!r} is for a registered model; leave it out, or register the model")
        if not self.minutes >= 0:
            raise ConfigError(f"minutes = {self.minutes}: give a number of minutes, 0 or more")
        if self.least is not None and self.least > self.workers:
            raise ConfigError(f"least = {self.least} of {self.workers} worker(s): give at most as many as workers")


def run_training(
    recipe: str | Path,
    *,
    data: Path | None,
    output: Path,
    sets: Sequence[str] = (),
    options: TrainOptions | None = None,
    console: Console,
) -> int:
    """Train, print every validation and where the package is; returns the exit code.

    Raises:
        ConfigError: the recipe or a setting is wrong. DataError: images and labels are missing or do not fit.
        EngineError: workers failed too often, or there is no such device.
    """
    options = options or TrainOptions()
    # Workers of Ray have the device that was asked for; what is to be done here takes what there is.
    here = options.device if _alone(options) else "auto"
    device(here)  # better known before the data is prepared
    config = with_start(load_recipe(recipe, sets), output, tracking_uri=options.tracking_uri)
    check_network(config)
    check_batch(config.train, options.workers)  # a worker that refuses would be started again and again
    _claim(config, output)
    start = starting_point(config, output)
    store = options.store or _prepared(config, data, output, console)
    job = TrainingJob(output.resolve(), store.resolve(), options.device, options.minutes * 60)
    found = open_started(store, start)
    if not (output / SPEC).is_file():
        _check(config, found, store, start, console)
    if not any((output / name).exists() for name in (CHECKPOINT, SPEC)):
        (output / PROGRESS).unlink(missing_ok=True)  # of steps that are made anew, maybe on other images
    watcher = _Watcher(config, found, output, options, console)
    if (output / SPEC).is_file():
        console.print(f"{output} is finished already; give a new --output to train anew", highlight=False)
        return watcher.finish(load_package(output))
    if options.register:
        with suppress(RegistryError):  # the watcher tells of a store that is away; training goes on
            check_alias(config.name, options.alias, tracking_uri=options.tracking_uri)
    try:
        with watcher:
            result = _train(job, options, watcher)
        if not result.finished:
            watcher.close("KILLED")
            console.print("time is up: run the same command again to continue", highlight=False)
            return TIME_UP
        command = shlex.join(["unetpp", "train", str(recipe), "--data", "DATA", "--output", f"runs/{Path(recipe).stem}",
                              *(part for setting in sets for part in ("--set", setting))])  # fmt: skip
        package = _package(config, found, result, output, start, command, device(here), console)
    except BaseException:
        watcher.close("FAILED")
        raise
    return watcher.finish(package)


def export_training(
    recipe: str | Path,
    *,
    data: Path | None,
    output: Path,
    sets: Sequence[str] = (),
    store: Path | None = None,
    folder: Path,
    tracking_uri: str | None = None,
    console: Console,
) -> None:
    """Write what `python -m unetpp.train FOLDER` needs; its checkpoint.pt, put into `output`, is continued from there.

    Raises:
        As `run_training`; OutputError: the folder cannot be written.
    """
    import torch

    from unetpp.train.job import DATA, ExportedTraining
    from unetpp.train.store import export

    config = with_start(load_recipe(recipe, sets), output, tracking_uri=tracking_uri)
    check_network(config)
    _claim(config, output)
    start = starting_point(config, output)
    found = store or _prepared(config, data, output, console)
    opened = open_started(found, start)
    _check(config, opened, found, start, console)
    export(found, folder / DATA)
    plain, bands = config_from(asdict(config.train)), len(opened.bands)
    torch.manual_seed(plain.seed)
    weights = None if start is None else build(config, bands, start).state_dict()
    ExportedTraining(config.network.kind, architecture(config, bands), plain, opened.mean, opened.std).save(
        folder, weights
    )
    console.print(
        f"{folder}: copy it, unetpp/ and kernels/unetpp_kernels/ to the bare machine, run `python -m unetpp.train "
        f"FOLDER --minutes 9` there until it exits with 0, put checkpoint.pt into {output}, and run this command again "
        "without --export",
        highlight=False,
        soft_wrap=True,
    )


def _claim(config: Recipe, output: Path) -> None:
    """Write the resolved recipe into the output folder, unless another one has begun there.

    One that ended before its first step (its data was not where it was said to be) has left nothing to lose.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / RECIPE
    if file.is_file():
        try:
            found = Recipe.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError:
            raise DataError(f"{file} is damaged or of another version of unetpp; give a new --output") from None
        begun = any((output / name).exists() for name in (CHECKPOINT, PROGRESS, SPEC))
        # The copy of the model that it would have started from is there already.
        if found != config and (begun or found.network.start != config.network.start):
            raise DataError(f"{output} holds another training; give each recipe and setting its own --output")
    write_file(file, (config.model_dump_json(indent=1) + "\n").encode())


def _prepared(config: Recipe, data: Path | None, output: Path, console: Console) -> Path:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("preparing data", total=None)
        return prepared_store(
            config,
            data,
            output,
            lambda what, done, total: bar.update(task, description=f"preparing {what}", completed=done, total=total),
        )


def _check(config: Recipe, data: TrainingData, store: Path, start: StartingPoint | None, console: Console) -> None:
    """Raise `DataError` where the store does not fit the recipe and its network, or the model that it starts from."""
    ours, theirs = [section.name for section in config.classes], list(data.classes)
    if ours != theirs:
        raise DataError(f"{store} has the classes {', '.join(theirs)}, the recipe {', '.join(ours)}; prepare it anew")
    shown, seen = (source.blocks.counts.sum(0) for source in (data.training, data.validation))
    if np.count_nonzero(shown) < 2:
        name = ours[int(shown.argmax())]
        raise DataError(
            f"all labelled pixels of the training images are {name!r}: there is nothing to tell apart; train on images "
            "that show another class, too"
        )
    if len(ours) == 2 and not seen[1]:
        name = config.classes[1].name
        raise DataError(
            f"no pixel of the validation images is {name!r}, so that no weights could be told from others; "
            "validate on images that show it"
        )
    check_augment(config.train.augment, data.training.span)
    reach = halo(architecture(config, len(data.bands)))
    check_surrounded(data.validation, store, reach)
    if data.within_group and data.guard < reach:
        raise DataError(
            f"{store} has {data.guard} px between training and validation, and the network sees {reach} px around a "
            f"pixel; prepare it anew with data.guard = {reach}"
        )
    if start is None:
        return
    unknown = "" if check_unseen(start, data) else "; whether it was trained on validation images is not known"
    heads = "" if start.keeps_heads(config) else ", with new heads for other classes"
    console.print(
        f"starts from {start.uri}: {start.shape()}{heads}{unknown}", markup=False, highlight=False, soft_wrap=True
    )


def _alone(options: TrainOptions) -> bool:
    """Say whether this process trains, and not workers of Ray."""
    return options.workers == 1 and options.address is None


def _train(job: TrainingJob, options: TrainOptions, watcher: _Watcher) -> TrainResult:
    if _alone(options):
        return work(job, on_step=watcher.step, on_epoch=lambda epoch: watcher.epoch(asdict(epoch)))
    from unetpp_workflows.training_ray import train_on_ray

    train_on_ray(job, workers=options.workers, least=options.least, address=options.address, on_entry=watcher.entry)
    # Every worker has ended behind the same checkpoint: this call only reads it.
    return work(replace(job, seconds=0.0, device="auto"))


def _package(
    config: Recipe,
    data: TrainingData,
    result: TrainResult,
    output: Path,
    start: StartingPoint | None,
    command: str,
    place: str,
    console: Console,
) -> Package:
    from unetpp_workflows.training_result import write_package

    write_file(output / HISTORY, (json.dumps(plain([asdict(e) for e in result.history]), indent=1) + "\n").encode())
    with console.status("scoring every level"):
        package = write_package(config, data, result, output, start=start, command=command, device=place)
    for row in package.spec.training["levels"]:
        speed = "" if row["mpx_per_second"] is None else f"  {row['mpx_per_second']:.2f} Mpx/s"
        console.print(
            f"level {row['level']}  score {row['score']:.4f}{speed}{'  kept' if row['kept'] else ''}", highlight=False
        )
    console.print(f"model package {package.folder} (mean IoU {package.spec.metrics['mean_iou']})", highlight=False)
    return package


class _Watcher:
    """Shows progress and records it; MLflow's troubles are told once and never end a training."""

    def __init__(
        self, config: Recipe, data: TrainingData, output: Path, options: TrainOptions, console: Console
    ) -> None:
        self._config, self._output, self._options, self._console = config, output, options, console
        self._names = [info.name for info in config.classes]
        self._run: TrainingRun | None = None
        self._trouble = False
        self._silence = Silence()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=config.train.steps)
        inputs = [(config.name, data.training.fingerprint, "training"),
                  (config.name, data.validation.fingerprint, "validation")]  # fmt: skip
        if options.record:
            self._guarded(lambda: self._open(inputs))

    def __enter__(self) -> _Watcher:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, number: int, loss: float) -> None:
        self._bar.update(self._task, completed=number, description=f"training, loss {loss:.4f}")
        if self._run is not None and (number % 10 == 0 or number == 1):
            run = self._run
            self._guarded(lambda: run.step(number, loss), wait=False)

    def epoch(self, epoch: dict[str, Any]) -> None:
        scores = "  ".join(f"{name} {value:.3f}" for name, value in zip(self._names, epoch["iou"], strict=True))
        waited = 100 * epoch["waited"] / max(epoch["seconds"], 1e-9)
        self._console.print(
            f"step {epoch['step']:>6}  loss {epoch['loss']:.4f}  IoU: {scores}  waited for data {waited:.1f}%",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if self._run is not None:
            run = self._run
            picture = self._output / OVERLAYS / f"step_{epoch['step']:06d}.jpg"
            self._guarded(lambda: run.epoch(epoch, self._names, picture), wait=False)

    def entry(self, entry: dict[str, Any]) -> None:
        """Take one line of progress.jsonl."""
        if "epoch" in entry:
            self.epoch(entry["epoch"])
        else:
            self.step(entry["step"], entry["loss"])

    def close(self, status: str) -> None:
        if self._run is not None:
            run = self._run
            self._guarded(lambda: run.close(status))

    def finish(self, package: Package) -> int:
        """Record the package, register it, and return the exit code."""
        options, console = self._options, self._console
        if self._run is not None:
            run = self._run
            files = [self._output / name for name in (RECIPE, HISTORY, LEVELS)]
            self._guarded(lambda: run.finish(package, files))
            console.print(f"MLflow run {run.id}", highlight=False)
        if options.register:
            self._guarded(lambda: self._register(package))
        return PART_FAILED if self._trouble else DONE

    def _open(self, inputs: Sequence[tuple[str, str, str]]) -> None:
        params = self._config.model_dump(mode="json")
        self._run = TrainingRun(
            self._output, self._config.name, params=params, data=inputs, tracking_uri=self._options.tracking_uri
        )
        if self._run.replaced is not None:
            self._console.print(
                f"{self._run.replaced}: {self._run.id} has what comes from here on",
                highlight=False,
                soft_wrap=True,
            )

    def _register(self, package: Package) -> None:
        from unetpp_workflows.registry import register_package

        version = register_package(
            package.folder,
            alias=self._options.alias,
            tracking_uri=self._options.tracking_uri,
            run_id=self._run.id if self._run is not None else None,
        )
        alias = f", now @{self._options.alias}" if self._options.alias else ""
        self._console.print(f"registered models:/{package.spec.name}/{version}{alias}", highlight=False)

    def _guarded(self, action: Callable[[], None], *, wait: bool = True) -> None:
        """Do something in MLflow; where it may not wait, not while the store is silent: each try can take minutes."""
        began = time.monotonic()
        if not wait and self._silence.holds():
            return
        try:
            action()
        except RegistryError as error:
            self._silence.begin(began, str(error))
            if not self._trouble:
                self._console.print(f"warning: not recorded in MLflow: {error}", markup=False, soft_wrap=True)
            self._trouble = True
