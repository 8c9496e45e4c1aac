"""How a package becomes a version of a registered model; knows nothing of aliases or where packages are used.

MLflow's own `log_model` works on process-wide state (tracking URI, active run); this does the same steps on one client
and needs the process-wide tracking URI only for the last of them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unetpp.package import CARD, SPEC, WEIGHTS, Package
from unetpp_workflows.mlflow_store import experiment, import_mlflow

EXPERIMENT = "unetpp-models"
DIGEST_TAG = "unetpp.digest"


def create_version(client: Any, uri: str, package: Package, name: str, run_id: str | None) -> str:
    """Log the package as a pyfunc with signature, add it as a version of the registered model `name`, return that."""
    import numpy as np

    import_mlflow()
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    from unetpp import __version__

    spec = package.spec
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(spec.dtype), (-1, -1, -1, len(spec.bands)))]),
        outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1))]),
        params=ParamSchema([ParamSpec("tta", DataType.string, "none")]),
    )
    logged = client.create_logged_model(experiment(client, uri, EXPERIMENT), name=name, source_run_id=run_id)
    state = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory(prefix="unetpp-") as scratch:
            files = Path(scratch) / "package"  # the artifact takes this folder's name
            files.mkdir()
            for part in (WEIGHTS, SPEC, CARD):
                if (package.folder / part).is_file():
                    shutil.copyfile(package.folder / part, files / part)
            with warnings.catch_warnings():  # it wants type hints and an example to infer the signature given here
                warnings.simplefilter("ignore", UserWarning)
                save_model(
                    path=str(Path(scratch) / "model"),
                    mlflow_model=Model(run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id),
                    python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                    artifacts={"package": str(files)},
                    signature=signature,
                    pip_requirements=[f"unetpp=={__version__}"],
                    metadata={DIGEST_TAG: package.digest},
                )
            client.log_model_artifacts(logged.model_id, str(Path(scratch) / "model"))
        state = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, state)
    tags = {
        DIGEST_TAG: package.digest,
        "unetpp.spacing": str(spec.spacing) if spec.spacing else "none",
        "unetpp.bands": ",".join(spec.bands),
        "unetpp.classes": ",".join(c.name for c in spec.classes),
    }
    with process_store(uri):
        row = client.create_model_version(
            name, source=f"models:/{logged.model_id}", run_id=run_id, tags=tags, model_id=logged.model_id
        )
    return str(row.version)


@contextmanager
def process_store(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's process-wide store for a moment, because its registry looks logged models up there."""
    mlflow = import_mlflow()
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if environment is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = environment
