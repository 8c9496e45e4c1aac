"""Follows results to what made them, and models to what they made; reads records and MLflow runs, writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unetpp.errors import ConfigError, StoreError
from unetpp.job import RECORD
from unetpp.package import load_package
from unetpp_workflows.evaluation_tracking import EXPERIMENT as EVALUATION
from unetpp_workflows.mlflow_store import import_mlflow, init_store, registry_errors, runs_of, store_uri
from unetpp_workflows.promotion import history
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import ResolvedModel, resolve
from unetpp_workflows.tracking import SEGMENTATION


@dataclass(frozen=True)
class Mask:
    """One segmentation: of which image, by which model, where it lies, and its MLflow run.

    `model`, `version` and `digest` say which model; `alias` what it was called then. `status` is "replaced" where
    another model's result lies in its folder now.
    """

    image: str
    fingerprint: str
    output: str
    model: str
    version: str | None
    digest: str
    alias: str | None
    status: str
    finished: str
    run: str | None


@dataclass(frozen=True)
class ModelLineage:
    """What a model came from and what came of it.

    Attributes:
        name, version, digest, uri: the model.
        training: what its package says: source, licence, command, steps, fingerprints.
        run: MLflow run that trained it; None where that was not recorded.
        datasets: of that run: name, digest (the fingerprint's first 36 digits), role.
        evaluations: name of the data, split, fingerprint, run.
        decisions: outcome, moment, by, run.
        masks: newest first.
    """

    name: str
    version: str | None
    digest: str
    uri: str
    training: dict[str, Any]
    run: str | None = None
    datasets: list[dict[str, str]] = field(default_factory=list)
    evaluations: list[dict[str, str]] = field(default_factory=list)
    decisions: list[dict[str, str]] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)


def mask_of(path: Path) -> Mask:
    """Return which model made a mask, from the record beside it; MLflow is not asked.

    Args:
        path: an image's folder in an output folder, or anything in it: a GeoTIFF, polygons, the Zarr labels.

    Raises:
        ConfigError: there is no such file, or no record. StoreError: it is damaged.
    """
    here = path.absolute()
    if not here.exists():
        raise ConfigError(f"{path}: no such file or folder; give an image's folder, a file in it, or models:/name/3")
    folder = next((place for place in (here, *here.parents) if (place / RECORD).is_file()), None)
    record = ImageRecord.read(folder) if folder else None
    if folder is None or record is None:
        raise ConfigError(
            f"{path}: no {RECORD} there or above; give an image's folder, a file in it, or models:/name/3"
        )
    model = record.model
    return Mask(
        image=str(record.input.get("uri")),
        fingerprint=str(record.input.get("fingerprint")),
        output=str(folder),
        model=str(model.get("name")),
        version=None if model.get("version") is None else str(model["version"]),
        digest=str(model.get("digest")),
        alias=model.get("alias"),
        status=record.status,
        finished=record.finished,
        run=record.tracking_run,
    )


def lineage(reference: str, *, tracking_uri: str | None = None) -> ModelLineage:
    """Return everything that MLflow and the package say about a model, by its weights' digest.

    Raises:
        ModelNotFoundError: there is no such model. RegistryError: the store does not answer.
    """
    model = resolve(reference, tracking_uri=tracking_uri)
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    training = load_package(model.folder).spec.training
    short = {key: value for key, value in training.items() if not key.endswith("_content") and key != "levels"}
    run, datasets = _trained(client, uri, model)
    return ModelLineage(
        name=model.name,
        version=model.version,
        digest=model.digest,
        uri=model.uri,
        training=short,
        run=run,
        datasets=datasets,
        evaluations=[_evaluation(row) for row in _by_digest(client, uri, EVALUATION, model.digest)],
        decisions=[
            {"outcome": found.outcome, "moment": found.moment, "by": found.by, "run": found.run or ""}
            for found in history(model.name, tracking_uri=uri)
            if found.version == model.version
        ]
        if model.version
        else [],
        masks=[_as_it_is(_mask(row)) for row in _by_digest(client, uri, SEGMENTATION, model.digest)],
    )


def _trained(client: Any, uri: str, model: ResolvedModel) -> tuple[str | None, list[dict[str, str]]]:
    """Return the run that the version names as its origin, or else one that says it made these weights."""
    mlflow = import_mlflow()
    with registry_errors(uri):
        run = client.get_model_version(model.name, model.version).run_id if model.version else None
    if not run:
        from unetpp_workflows.training_tracking import TRAINING

        rows = _by_digest(client, uri, TRAINING, model.digest)
        run = str(rows[0].info.run_id) if rows else None
    if not run:
        return None, []
    try:
        inputs = client.get_run(run).inputs
    except mlflow.exceptions.MlflowException:
        return run, []  # the run was deleted; its id is still what the version says
    rows = [(entry.dataset, {tag.key: tag.value for tag in entry.tags}) for entry in inputs.dataset_inputs or []]
    return run, [
        {"name": data.name, "digest": data.digest, "role": tags.get("mlflow.data.context", "")} for data, tags in rows
    ]


def _by_digest(client: Any, uri: str, experiment: str, digest: str) -> list[Any]:
    return runs_of(client, uri, experiment, f"tags.`unetpp.model.digest` = '{digest}'")


def _evaluation(row: Any) -> dict[str, str]:
    params = row.data.params
    named = {key: params.get(f"data.{key}", "") for key in ("name", "split", "fingerprint")}
    return {**named, "mean_iou": f"{row.data.metrics.get('mean_iou', float('nan')):.4f}", "run": row.info.run_id}


def _mask(row: Any) -> Mask:
    tags = row.data.tags
    model = {key: tags.get(f"unetpp.model.{key}") for key in ("name", "version", "digest", "alias")}
    return Mask(
        image=tags.get("unetpp.input.uri", ""),
        fingerprint=tags.get("unetpp.input.fingerprint", ""),
        output=tags.get("unetpp.output", ""),
        model=model["name"] or "",
        version=model["version"],
        digest=model["digest"] or "",
        alias=model["alias"],
        status=tags.get("unetpp.status", ""),
        finished=_moment(row.info.end_time),
        run=str(row.info.run_id),
    )


def _as_it_is(mask: Mask) -> Mask:
    """Return the mask with what has become of it; a folder that cannot be seen from here tells nothing."""
    try:
        record = ImageRecord.read(Path(mask.output))
    except (StoreError, OSError):
        return mask
    return mask if record is None or record.model.get("digest") == mask.digest else replace(mask, status="replaced")


def _moment(milliseconds: int | None) -> str:
    from datetime import UTC, datetime

    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
