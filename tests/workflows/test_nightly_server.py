"""Nights against MLflow as it is deployed: PostgreSQL, users, artifacts by proxy in S3; restarted meanwhile."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.workflows.mlflow_server import database, server
from tests.workflows.test_gates import CARD, FACTS
from tests.workflows.test_nightly import draw
from unetpp_workflows.cli import app
from unetpp_workflows.mlflow_store import init_store
from unetpp_workflows.promotion import history
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import aliases_of, register_package
from unetpp_workflows.tracking import SEGMENTATION


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nights_on_the_deployed_stack_and_a_server_that_restarts_meanwhile(
    ink_variant: Callable[..., Path],
    ink_store: Callable[..., Path],
    known_speed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moto = pytest.importorskip("moto.server", reason="needs an S3 store: pip install 'moto[server]'")
    import boto3

    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="mlflow")
    try:
        with (
            database() as postgres,
            server(postgres, tmp_path, "s3://mlflow/artifacts", MLFLOW_S3_ENDPOINT_URL=endpoint, **keys) as running,
        ):
            for name, value in {**running.environment(), "MLFLOW_TRACKING_URI": running.uri}.items():
                monkeypatch.setenv(name, value)
            for name in keys:
                monkeypatch.delenv(name, raising=False)  # clients have no key of the bucket

            def register(threshold: int, alias: str) -> None:
                folder = ink_variant(tmp_path / f"p{threshold}", threshold, CARD, training=FACTS, metrics={"iou": 1})
                register_package(folder, "ink", alias=alias)

            register(60, "champion")
            archive, output = tmp_path / "archive", tmp_path / "out"
            archive.mkdir()
            for name in "abcdefgh":
                draw(archive / f"{name}.png", 40)
            config = tmp_path / "nightly.toml"
            (tmp_path / "gates.toml").write_text("calibration = { ece = 1 }")
            config.write_text(
                f'archive = ["{archive}"]\noutput = "{output}"\nmodel = "ink"\n'
                '[segment]\ntiling = { core = 64 }\nengine = { name = "torch" }\n'
                f'[promotion]\ndata = "{ink_store(0, 20, 50, 100, 100, 300)}"\ngates = "{tmp_path / "gates.toml"}"\n'
            )
            moments: list[float] = []
            restarted = threading.Thread(target=lambda: _restart_after_a_report(output, running.restart, moments))
            restarted.start()
            first = CliRunner().invoke(app, ["nightly", str(config)])
            assert moments and moments[0] < time.monotonic(), "the server was stopped while the night ran"
            restarted.join(600)
            assert first.exit_code in (0, 1), first.output  # images that met the restart are named as not recorded
            register(112, "challenger")
            second = CliRunner().invoke(app, ["nightly", str(config)])
            assert second.exit_code == 0, second.output
            night = json.loads(max((output / "nightly").glob("2*.json")).read_text())
            warned = len(re.findall(r"^failed: [a-h]: not recorded", first.output, re.MULTILINE))
            assert len(night["archive"]["again"]) == warned and night["archive"]["unchanged"] == 8 - warned
            assert night["promotion"]["outcome"] == "promoted"

            client = init_store(running.uri)
            assert aliases_of(client, running.uri, "ink") == {"champion": "2", "previous": "1"}
            assert [decision.outcome for decision in history("ink")] == ["promoted"]
            experiment = client.get_experiment_by_name(SEGMENTATION)
            runs = client.search_runs([experiment.experiment_id])
            finished = Counter(run.info.run_name for run in runs if run.info.status == "FINISHED")
            records = [ImageRecord.read(output / name) for name in "abcdefgh"]
            assert len(finished) == 8 and set(finished.values()) == {1}, finished
            for record in records:
                assert record is not None and record.status == "done" and record.warning is None
                assert client.get_run(record.tracking_run).info.status == "FINISHED"
            stored = [item.key for item in bucket.objects.all()]
            assert any(key.endswith("weights.safetensors") for key in stored)
            assert sum(key.endswith("decision.json") for key in stored) == 1
    finally:
        store.stop()


def _restart_after_a_report(output: Path, restart: Callable[[], None], moments: list[float]) -> None:
    end = time.monotonic() + 600
    while not list(output.glob("*/report.html")) and time.monotonic() < end:
        time.sleep(0.02)
    moments.append(time.monotonic())
    restart()
