"""Writes finished segmentations into MLflow, one run each; knows records and files, computes nothing.

What a run may hold is a closed list: the record's own facts and four named files of the image's folder. Image metadata,
label or macro photos and label arrays cannot get here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
import re
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp_workflows.mlflow_store import experiment, import_mlflow, init_store, locked, registry_errors, store_uri
from unetpp_workflows.registry import model_id

if TYPE_CHECKING:
    from unetpp_workflows.record import ImageRecord

SEGMENTATION = "unetpp-segmentation"
KEY_TAG = "unetpp.key"
FILES = ("report.html", "picture.jpg", "validity.png", "config.json")
_STATUS = {"done": "FINISHED", "empty": "FINISHED", "partial": "FAILED", "failed": "FAILED"}
_NAME_CHARS, _VALUE_CHARS, _DIGEST_CHARS, _BATCH = 250, 5000, 36, 100


def log_segmentation(record: ImageRecord, folder: Path, *, tracking_uri: str | None = None) -> str:
    """Record one segmented image and return the run's id; the same key again updates the run it has.

    Parameters are written when the run is created: the key determines them. What may differ between two calls of one
    key (where the image and the output lie, the model's registry version) is a tag and holds the last call's value.

    Args:
        record: goes in as record.json, with the run's id filled in.
        folder: the image's output folder; report, picture, validity mask and configuration are copied from it.
        tracking_uri: MLflow store, see `store_uri`.

    Raises:
        RegistryError: the store does not answer.
        OutputError: the store's folder cannot be written.
    """
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    with registry_errors(uri):
        with locked(uri):
            run_id = _run_of(client, uri, record)
        log(client, run_id, metrics=_metrics(record), tags=_tags(record, folder))
        _link_input(client, run_id, record)
        _link_model(client, run_id, record)
        told = dataclasses.asdict(dataclasses.replace(record, tracking_run=run_id))
        client.log_text(run_id, json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False), "record.json")
        for name in FILES:
            if (folder / name).is_file():
                client.log_artifact(run_id, str(folder / name))
        client.set_terminated(run_id, _STATUS[record.status])
    return run_id


def _run_of(client: Any, uri: str, record: ImageRecord) -> str:
    """Return the run of the record's key, marked running again, or a new one with its parameters."""
    where = experiment(client, uri, SEGMENTATION)
    if record.key:
        found = client.search_runs([where], f"tags.`{KEY_TAG}` = '{record.key}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
    run = client.create_run(where, start_time=_milliseconds(record.started), run_name=record.name)
    params = {
        "model": {name: record.model.get(name) for name in ("name", "version", "digest", "spacing")},
        "input": {name: record.input.get(name) for name in ("kind", "format", "height", "width", "dtype", "spacing")},
        "fingerprint": record.input.get("fingerprint"),
        "engine": record.engine,
        "tile": record.plan,
        "tissue": record.input.get("tissue"),
    }
    log(client, run.info.run_id, params=flat(params), tags={KEY_TAG: record.key or ""})
    return str(run.info.run_id)


def _metrics(record: ImageRecord) -> dict[str, float]:
    """Return areas with their unit in the name, pixels and objects per class, IoU, speed and seconds per stage."""
    figures = record.figures
    values: dict[str, Any] = {"valid_px": figures.get("valid_px")}
    for entry in figures.get("classes", []):
        values[f"area.{entry['name']}.{entry['unit']}"] = entry["area"]
        values[f"px.{entry['name']}"] = entry["px"]
        values[f"objects.{entry['name']}"] = entry.get("objects")
    values |= {f"iou.{name}": value for name, value in (record.iou or {}).items()}
    shadow = record.shadow or {}
    values |= {"shadow.agreement": shadow.get("agreement"), "shadow.px": shadow.get("px")}
    values |= {f"shadow.iou.{name}": value for name, value in shadow.get("iou", {}).items()}
    values |= {f"seconds.{stage}": value for stage, value in record.seconds.items()}
    values["mpx_per_worker_second"] = record.mpx_per_worker_second
    return numbers(values)


def _tags(record: ImageRecord, folder: Path) -> dict[str, str]:
    tags = {
        "unetpp.status": record.status,
        "unetpp.message": record.message,
        "unetpp.input.uri": record.input.get("uri"),
        "unetpp.input.fingerprint": record.input.get("fingerprint"),
        "unetpp.output": folder.absolute(),
        "unetpp.config_hash": record.config_hash,
        "unetpp.version": record.software.get("unetpp"),
        "unetpp.executor": record.executor.get("kind"),
        **{f"unetpp.model.{name}": record.model.get(name) for name in ("name", "version", "digest", "alias", "uri")},
        **{f"unetpp.shadow.{name}": (record.shadow or {}).get(name) for name in ("name", "version", "digest", "run")},
    }
    return {name: str(value)[:_VALUE_CHARS] for name, value in tags.items() if value is not None}


def _link_input(client: Any, run_id: str, record: ImageRecord) -> None:
    """Name the image as the run's dataset; MLflow itself drops a second link to the same one."""
    import_mlflow()
    from mlflow.entities import Dataset, DatasetInput, InputTag

    uri, fingerprint = record.input.get("uri"), record.input.get("fingerprint")
    if not uri or not fingerprint:
        return
    dataset = Dataset(
        name=re.split(r"[/\\]", str(uri).rstrip("/\\"))[-1],
        digest=str(fingerprint)[:_DIGEST_CHARS],
        source_type="unetpp",
        source=json.dumps({"uri": str(uri)}),
    )
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "inference")])])


def _link_model(client: Any, run_id: str, record: ImageRecord) -> None:
    """Link the registered version's logged model, where the model came from this registry."""
    import_mlflow()
    from mlflow.entities import LoggedModelInput

    version = record.model.get("version")
    logged = model_id(record.model["name"], version, client) if version else None
    inputs = client.get_run(run_id).inputs
    linked = {str(link.model_id) for link in (inputs.model_inputs if inputs else None) or []}
    if logged and logged not in linked:
        client.log_inputs(run_id, models=[LoggedModelInput(logged)])


def log(
    client: Any,
    run_id: str,
    *,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    step: int = 0,
) -> None:
    """Send values in batches that every MLflow server takes."""
    import_mlflow()
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    rows_p = [Param(name, value) for name, value in (params or {}).items()]
    rows_m = [Metric(_name(name), value, now, step) for name, value in (metrics or {}).items()]
    rows_t = [RunTag(name, value) for name, value in (tags or {}).items()]
    for i in range(0, max(len(rows_p), len(rows_m), len(rows_t)), _BATCH):
        part = slice(i, i + _BATCH)
        client.log_batch(run_id, metrics=rows_m[part], params=rows_p[part], tags=rows_t[part])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as `a.b` -> text."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[_name(f"{prefix}{name}")] = str(value)[:_VALUE_CHARS]
    return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what reads as a finite number; a metric that is not known is left out rather than zero."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number) and name != "epoch":
            numbers[name] = number
    return numbers


def _name(text: str) -> str:
    """Return the text as MLflow takes it for a name: other characters replaced, and a path of no detours.

    Groups may be URIs, so that names have "//" in them. Of a long one the end is kept, which tells more apart.
    """
    return posixpath.normpath(re.sub(r"[^\w.\-/ ]", "_", text)[-_NAME_CHARS:]).lstrip("./")


def _milliseconds(moment: str) -> int | None:
    return int(datetime.fromisoformat(moment).timestamp() * 1000) if moment else None
