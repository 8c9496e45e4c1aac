"""Runs a training on several workers through Ray Train; knows processes and nodes, not what training is.

Every worker is one process of torch.distributed (gloo on CPUs, NCCL on GPUs). The checkpoint lies in the output folder,
which all nodes see: a worker group that Ray starts anew, with as many workers as there are then, continues from it.

Ray would start a group anew after any error. One of ours that comes again at the same checkpoint will come every time:
each worker notes its own in the output folder, and a group that finds one noted often enough ends at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.durable import write_file
from unetpp.errors import EngineError, UnetppError, one_line
from unetpp.train.job import CHECKPOINT
from unetpp_workflows.executors.session import ray_session
from unetpp_workflows.training_job import PROGRESS, Journal, TrainingJob, device

_POLL_SECONDS = 0.5
_FAILURES, _SAME = "failure.*.json", 3


def train_on_ray(
    job: TrainingJob,
    *,
    workers: int,
    least: int | None = None,
    address: str | None = None,
    failures: int = 8,
    on_entry: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train on `workers` workers until the job is finished or its time is up.

    Args:
        workers: how many, one CPU or one GPU each.
        least: go on with as few as this when nodes vanish, and take more when they come back; None: never fewer.
        address: of a running cluster; None starts Ray on this machine.
        failures: restarts of the worker group before the training fails.
        on_entry: called in this thread with every new entry of the output's progress.jsonl.

    Raises:
        EngineError: a worker failed more often than that, or three times in a row for one reason.
    """
    for left in job.output.glob(_FAILURES):
        left.unlink(missing_ok=True)
    with redirect_stdout(sys.stderr), ray_session(address, cpus=workers):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        # The workers have the GPUs: this machine needs none.
        gpu = job.device == "cuda" or device(job.device) == "cuda"
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": replace(job, device="cuda" if gpu else "cpu")},
            scaling_config=ScalingConfig(
                num_workers=workers if least is None else (least, workers),
                use_gpu=gpu,
                resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
            ),
            run_config=RunConfig(
                name="ray", storage_path=str(job.output.resolve()), failure_config=FailureConfig(max_failures=failures)
            ),
        )
        _follow(trainer.fit, Journal(job.output / PROGRESS), on_entry)
    if (why := _hopeless(job.output)) is not None:
        raise EngineError(f"training on Ray failed: {why}")


def _follow(fit: Callable[[], Any], journal: Journal, on_entry: Callable[[dict[str, Any]], None] | None) -> None:
    """Run `fit` in a thread and pass on what the workers write."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:  # noqa: BLE001  # raised again below, in the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        for entry in journal.new():
            if on_entry is not None:
                on_entry(entry)
    if errors:
        raise EngineError(f"training on Ray failed: {_reason(errors[0])}") from errors[0]


def _reason(error: BaseException) -> str:
    """Return the line that says why: of a worker's error, which Ray hands on with its traceback, the last one."""
    failures = getattr(error, "worker_failures", None)
    text = str(failures[min(failures)] if failures else error).strip()
    return text.splitlines()[-1 if failures else 0].strip() if text else type(error).__name__


def _worker(config: dict[str, Any]) -> None:
    """Run in every worker process, in a group that Ray Train has connected already."""
    from unetpp.train import Ranks
    from unetpp_workflows.training_job import work

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    job: TrainingJob = config["job"]
    output, ranks = Path(job.output), Ranks.of_process_group()
    # All of them, or none: what one sees of a file system that caches, another may not yet.
    if ranks.sum(np.array([_hopeless(output) is not None]), job.device).any():
        return
    try:
        work(replace(job, output=output), ranks)
    except UnetppError as error:
        _note(output, ranks.rank, one_line(error))
        raise


def _note(output: Path, rank: int, error: str) -> None:
    """Write down what a worker ended with, and how often in a row at this checkpoint."""
    checkpoint, file = output / CHECKPOINT, output / _FAILURES.replace("*", str(rank))
    found = {"error": error, "at": checkpoint.stat().st_mtime_ns if checkpoint.is_file() else None}
    before = _noted(file)
    same = before is not None and all(before[key] == value for key, value in found.items())
    write_file(file, json.dumps({**found, "times": before["times"] + 1 if before and same else 1}).encode())


def _noted(file: Path) -> dict[str, Any] | None:
    try:
        noted: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return noted


def _hopeless(output: Path) -> str | None:
    """Return what a worker ended with so often in a row that it will again; None where there is no such thing."""
    found = (_noted(file) for file in sorted(output.glob(_FAILURES)))
    return next((str(noted["error"]) for noted in found if noted is not None and noted["times"] >= _SAME), None)
