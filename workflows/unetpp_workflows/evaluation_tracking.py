"""Finds an evaluation that was made before, or makes and records it: a local folder first, then MLflow; draws nothing.

One that was interrupted goes on after the last image that it judged.

An evaluation is one finished MLflow run, found by its key, with evaluation.json and evaluation.html as artifacts. What
the key says cannot change, so a found one is as good as a new one; only its speed belongs to the machine it was
measured on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetpp.durable import write_file
from unetpp.errors import RegistryError, StoreError
from unetpp.model.orientations import Tta
from unetpp.package import load_package
from unetpp.train.measure import Counts
from unetpp_workflows.evaluation import (
    Evaluation,
    EvaluationData,
    check_fit,
    evaluate,
    evaluation_key,
    shared_images,
    tells_parts,
)
from unetpp_workflows.evaluation_journal import EvaluationJournal
from unetpp_workflows.mlflow_store import experiment, import_mlflow, init_store, locked, registry_errors, store_uri
from unetpp_workflows.registry import model_id
from unetpp_workflows.tracking import flat, log, numbers

if TYPE_CHECKING:
    from unetpp_workflows.registry import ResolvedModel

EXPERIMENT = "unetpp-evaluation"
JSON, PAGE = "evaluation.json", "evaluation.html"
KEY_TAG, STATE_TAG = "unetpp.evaluation.key", "unetpp.evaluation.state"
_DIGEST_CHARS = 36
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, whether it was found rather than made, and why it is not in MLflow where it is not.

    `resumed` is the number of images that an interrupted evaluation had judged.
    """

    evaluation: Evaluation
    found: bool
    page: str
    warning: str | None = None
    resumed: int = 0


def evaluated(
    model: ResolvedModel,
    data: EvaluationData,
    *,
    precision: str = "fp32",
    tta: Tta = "none",
    device: str = "cpu",
    output: Path | None = None,
    tracking_uri: str | None = None,
    on_image: Callable[[], None] | None = None,
) -> Evaluated:
    """Return the evaluation of a model on a split, with its MLflow run; it is made only where there is none yet.

    Args:
        output: folder that evaluation.json and evaluation.html are written to; also looked into first.
        tracking_uri: MLflow store, see `store_uri`. One that does not answer is a warning, not an error.
        on_image: called for each image that is judged, or was before an interruption.
        Others: as for `unetpp_workflows.evaluation.evaluate`.

    Raises:
        DataError: the store does not fit the model. OutputError: `output` cannot be written.
    """
    package = load_package(model.folder)
    check_fit(package.spec, data)
    key = evaluation_key(package, data, precision, tta)
    found, warning = _here(output, key), None
    if found is None:
        try:
            found = find_evaluation(key, tracking_uri=tracking_uri)
        except RegistryError as error:
            warning = str(error)
    fresh = found is None
    journal = EvaluationJournal(key, device)
    known = journal.known() if fresh else {}
    if found is None:
        from unetpp_workflows.cases import draw_cases
        from unetpp_workflows.evaluation_page import evaluation_page

        def judged(image: int, counts: Counts) -> None:
            journal.add(image, counts)
            advance()

        advance = on_image or (lambda: None)
        for _ in known:
            advance()
        made = evaluate(model, package, data, precision=precision, tta=tta, device=device, known=known, on_image=judged)
        found = made, evaluation_page(made, *draw_cases(made, package, data))
    evaluation, page = found
    # The same weights may by now have another name or version; what was measured is the same.
    evaluation = dataclasses.replace(evaluation, model=dict(model.reference()))
    if not fresh and tells_parts(package.spec, data):  # older versions did not know an image by its part
        shared = shared_images(package.spec, data)
        evaluation = dataclasses.replace(evaluation, data={**evaluation.data, "shared": shared})
    if warning is None and (evaluation.run is None or fresh):
        try:
            evaluation = record_evaluation(evaluation, page, tracking_uri=tracking_uri)
        except RegistryError as error:
            warning = str(error)
    if output is not None:
        write_evaluation(evaluation, page, output)
    if output is not None or warning is None:
        journal.discard()
    return Evaluated(evaluation, not fresh, page, warning, len(known))


def find_evaluation(key: str, *, tracking_uri: str | None = None) -> tuple[Evaluation, str] | None:
    """Return the finished evaluation of this key and its page, None where there is none or its files are lost.

    Raises:
        RegistryError: the store does not answer.
    """
    uri = store_uri(tracking_uri)
    client, mlflow = init_store(uri), import_mlflow()
    with registry_errors(uri):
        where = client.get_experiment_by_name(EXPERIMENT)
        if where is None:
            return None
        rows = client.search_runs([where.experiment_id], f"tags.`{KEY_TAG}` = '{key}' and tags.`{STATE_TAG}` = 'done'")
    for row in rows:
        with tempfile.TemporaryDirectory(prefix="unetpp-") as scratch:
            try:
                text, page = (
                    Path(client.download_artifacts(row.info.run_id, name, scratch)).read_text(encoding="utf-8")
                    for name in (JSON, PAGE)
                )
                return dataclasses.replace(Evaluation.from_json(text), run=row.info.run_id), page
            except (mlflow.exceptions.MlflowException, OSError, StoreError) as error:
                _LOG.warning("evaluation run %s cannot be read and is made again: %s", row.info.run_id, error)
    return None


def record_evaluation(evaluation: Evaluation, page: str, *, tracking_uri: str | None = None) -> Evaluation:
    """Write the evaluation as one MLflow run that names its model and its data; return it with the run's id.

    Raises:
        RegistryError: the store does not answer, or refuses.
    """
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    model, data = evaluation.model, evaluation.data
    with registry_errors(uri):
        with locked(uri):
            where = experiment(client, uri, EXPERIMENT)
        run_id = str(client.create_run(where, run_name=f"{model['name']} on {data['name']}").info.run_id)
        recorded = dataclasses.replace(evaluation, run=run_id)
        tags = {f"unetpp.model.{name}": str(value) for name, value in model.items() if value is not None}
        log(
            client,
            run_id,
            params=flat({"model": model, "data": data, "precision": evaluation.precision, "tta": evaluation.tta}),
            metrics=numbers(flat({**evaluation.figures, "speed": evaluation.speed})),
            tags={KEY_TAG: evaluation.key, "unetpp.data.fingerprint": data["fingerprint"], **tags},
        )
        link_data(client, run_id, data)
        link_version(client, run_id, model)
        client.log_text(run_id, recorded.to_json(), JSON)
        client.log_text(run_id, page, PAGE)
        log(client, run_id, tags={STATE_TAG: "done"})  # a run that was cut short is never taken for an evaluation
        client.set_terminated(run_id, "FINISHED")
    return recorded


def link_data(client: Any, run_id: str, data: dict[str, Any]) -> None:
    """Name a split as the run's dataset, by its fingerprint."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=f"{data['name']}/{data['split']}",
        digest=str(data["fingerprint"])[:_DIGEST_CHARS],
        source_type="unetpp",
        source=json.dumps({"store": data["store"], "split": data["split"]}),
    )
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])


def link_version(client: Any, run_id: str, model: dict[str, Any]) -> None:
    """Link the registered version's logged model, where the model has a version."""
    from mlflow.entities import LoggedModelInput

    logged = model_id(model["name"], model["version"], client) if model.get("version") else None
    if logged:
        client.log_inputs(run_id, models=[LoggedModelInput(logged)])


def write_evaluation(evaluation: Evaluation, page: str, output: Path) -> None:
    """Write both files into a folder. Raises `OutputError`."""
    from unetpp.durable import output_errors

    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_file(output / PAGE, page.encode())
    write_file(output / JSON, evaluation.to_json().encode())


def _here(output: Path | None, key: str) -> tuple[Evaluation, str] | None:
    if output is None or not (output / JSON).is_file() or not (output / PAGE).is_file():
        return None
    try:
        evaluation = Evaluation.from_json((output / JSON).read_text(encoding="utf-8"))
    except (StoreError, OSError):
        return None  # of another version or cut short: it is made again and replaced
    return (evaluation, (output / PAGE).read_text(encoding="utf-8")) if evaluation.key == key else None
