"""Writes one training into one MLflow run, however often it is restarted; knows what it is told, computes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import write_file
from unetpp.package import SPEC
from unetpp.train.job import CHECKPOINT
from unetpp_workflows.mlflow_store import experiment, import_mlflow, init_store, locked, registry_errors, store_uri
from unetpp_workflows.tracking import flat, log, numbers

if TYPE_CHECKING:
    from unetpp.package import Package

TRAINING = "unetpp-training"
RUN_FILE = "mlflow.json"
_DIGEST_CHARS = 36


class TrainingRun:
    """The MLflow run of one training; made when there is none, continued when the output folder names one.

    Where that one was deleted meanwhile, or is of a training with other settings or images that ended here before its
    first checkpoint, another is made, which has what comes from here on.

    Attributes:
        id: of the run.
        replaced: what became of the run that the folder named, in words; None where it is continued, or there was none.

    Args:
        output: the training's folder; mlflow.json there holds the run's id and a hash of what it is of.
        name: of the run: the model's.
        params: the resolved recipe, nested.
        data: name, fingerprint and role of each dataset: `[("nuclei", "ab12...", "training"), ...]`.
        tracking_uri: MLflow store, see `store_uri`.
        system_metrics: sample processor, memory, disk and GPU load while the run is open.

    Raises:
        RegistryError: the store does not answer.
    """

    def __init__(
        self,
        output: Path,
        name: str,
        *,
        params: Mapping[str, Any],
        data: Sequence[tuple[str, str, str]],
        tracking_uri: str | None = None,
        system_metrics: bool = True,
    ) -> None:
        self._uri = store_uri(tracking_uri)
        self._client = init_store(self._uri)
        self._output = output
        self.replaced: str | None = None
        with registry_errors(self._uri):
            self.id, self._last = self._open(name, params, data)
        self._monitor = _monitor(self.id, self._uri) if system_metrics else None

    def step(self, number: int, loss: float) -> None:
        """Record the training loss of one step, once."""
        self._metrics(number, {"loss": loss})

    def epoch(self, epoch: Mapping[str, Any], classes: Sequence[str], overlay: Path | None = None) -> None:
        """Record one validation: mean loss of the stretch, IoU per class and per group, seconds, and its picture."""
        number = int(epoch["step"])
        if number <= self._last["val.mean_loss"]:
            return
        groups = {f"val.iou.{group}": dict(zip(classes, iou, strict=True)) for group, iou in epoch["groups"].items()}
        values = {
            "val.mean_loss": epoch["loss"],
            "val.iou": dict(zip(classes, epoch["iou"], strict=True)),
            "seconds": {"stretch": epoch["seconds"], "waited": epoch["waited"]},
            **groups,
        }
        self._metrics(number, numbers(flat(values)))
        if overlay is not None and overlay.is_file():
            with registry_errors(self._uri):
                self._client.log_artifact(self.id, str(overlay), "overlays")

    def finish(self, package: Package, artifacts: Iterable[Path] = ()) -> None:
        """Record the final figures and files of a finished training and close the run."""
        with registry_errors(self._uri):
            step = int(package.spec.training["best_step"])
            log(self._client, self.id, metrics=numbers(flat({"final": package.spec.metrics})), step=step)
            log(self._client, self.id, tags={"unetpp.model.digest": package.digest})
            for path in (package.folder / "MODEL_CARD.md", package.folder / "model.json", *artifacts):
                self._client.log_artifact(self.id, str(path))
        self.close("FINISHED")

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED; a later call of the same training opens it again."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        with registry_errors(self._uri):
            self._client.set_terminated(self.id, status)

    def _open(
        self, name: str, params: Mapping[str, Any], data: Sequence[tuple[str, str, str]]
    ) -> tuple[str, dict[str, int]]:
        last = {"loss": -1, "val.mean_loss": -1}
        file = self._output / RUN_FILE
        of = hashlib.sha256(json.dumps([params, data], sort_keys=True).encode()).hexdigest()
        if file.is_file():
            named = json.loads(file.read_text(encoding="utf-8"))
            run_id = str(named["run_id"])
            # From its first checkpoint on, a training refuses other settings and images itself.
            begun = any((self._output / name).exists() for name in (CHECKPOINT, SPEC))
            ours = begun or named.get("of", of) == of  # older versions did not say
            if ours and self._is_there(run_id):
                self._client.update_run(run_id, status="RUNNING")
                for key in last:
                    last[key] = max((m.step for m in self._client.get_metric_history(run_id, key)), default=-1)
                return run_id, last
            self.replaced = f"the MLflow run {run_id} {'was deleted' if ours else 'is of other settings or images'}"
        with locked(self._uri):
            run = self._client.create_run(experiment(self._client, self._uri, TRAINING), run_name=name)
        run_id = str(run.info.run_id)
        log(self._client, run_id, params=flat({"recipe": params}), tags={"unetpp.model.name": name})
        _link(self._client, run_id, data)
        write_file(file, (json.dumps({"run_id": run_id, "of": of}) + "\n").encode())
        return run_id, last

    def _is_there(self, run_id: str) -> bool:
        try:
            return str(self._client.get_run(run_id).info.lifecycle_stage) == "active"
        except import_mlflow().exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send values of a step that has not been recorded, so that a resumed training doubles nothing."""
        key = "loss" if "loss" in values else "val.mean_loss"
        if step <= self._last[key]:
            return
        self._last[key] = step
        with registry_errors(self._uri):
            log(self._client, self.id, metrics=numbers(values), step=step)


def _link(client: Any, run_id: str, data: Sequence[tuple[str, str, str]]) -> None:
    """Name the datasets as inputs of the run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        run_id,
        datasets=[
            DatasetInput(
                Dataset(name=name, digest=digest[:_DIGEST_CHARS], source_type="unetpp", source=json.dumps({})),
                [InputTag("mlflow.data.context", role)],
            )
            for name, digest, role in data
        ],
    )


def _monitor(run_id: str, uri: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor
