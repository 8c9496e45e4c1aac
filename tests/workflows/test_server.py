"""The registry, evaluations and promotions on an MLflow server with PostgreSQL, an artifact proxy and users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.mlflow_server import Database, Server, database, server
from tests.workflows.test_gates import CARD, FACTS
from tests.workflows.test_promotion import GATES
from unetpp.errors import RegistryError
from unetpp.package import load_package
from unetpp_workflows.mlflow_store import init_store
from unetpp_workflows.promotion import history, promote, rollback
from unetpp_workflows.registry import aliases_of, list_models, register_package, resolve


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with database() as running:
        yield running


@pytest.fixture(scope="module")
def running(postgres: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(postgres, tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def user(running: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Become a user of the server, who is made where there is none of that name yet."""
    known = {"admin"}

    def become(name: str, password: str | None = None) -> None:
        if name not in known and password is None:
            import requests

            for key, value in running.environment().items():
                monkeypatch.setenv(key, value)
            answer = requests.post(
                f"{running.uri}/api/2.0/mlflow/users/create",
                json={"username": name, "password": running.password},
                auth=("admin", running.password),
                timeout=60,
            )
            assert answer.ok or "exists" in answer.text, answer.text
            known.add(name)
        for key, value in running.environment(name, password).items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)

    return become


def test_promote_and_roll_back_with_users(
    running: Server,
    user: Callable[..., None],
    ink_store: Callable[..., Path],
    ink_variant: Callable[..., Path],
    tmp_path: Path,
    known_speed: dict[str, Any],
) -> None:
    store = ink_store(0, 20, 50, 100, 100, 300)

    def register(threshold: int, **options: Any) -> str:
        folder = ink_variant(tmp_path / f"p{threshold}", threshold, CARD, training=FACTS, metrics={"iou": 1})
        return register_package(folder, "ink", **options)

    user("scientist")
    register(60)
    assert promote("ink", store, gates=GATES).outcome == "promoted"
    assert register(112, alias="challenger") == "2"
    found = resolve("models:/ink@challenger", cache=tmp_path / "cache")
    assert found.digest == load_package(tmp_path / "p112").digest  # through the proxy
    assert list(Path(running.artifacts).rglob("weights.safetensors")), "the server keeps the files"
    decision = promote("ink", store, gates=GATES)
    client = init_store(running.uri)
    assert decision.outcome == "promoted" and decision.by.startswith("scientist@")
    assert aliases_of(client, running.uri, "ink") == {"champion": "2", "previous": "1"}
    assert client.get_run(decision.run).info.status == "FINISHED"
    user("guest")  # may read, and no more
    with pytest.raises(RegistryError, match=r"(?i)permission denied") as refused:
        rollback("ink")
    assert running.password not in str(refused.value)
    assert aliases_of(client, running.uri, "ink") == {"champion": "2", "previous": "1"}
    user("scientist", "wrong")
    with pytest.raises(RegistryError, match=r"(?i)401|not authenticated|unauthorized"):
        list_models()
    user("scientist")
    assert rollback("ink").outcome == "rolled back"
    assert aliases_of(client, running.uri, "ink") == {"champion": "1", "previous": "2"}
    assert [d.outcome for d in history("ink")] == ["rolled back", "promoted", "promoted"]
    assert [row.name for row in list_models()] == ["ink", "ink"]  # and no lock is left


FIRST = """
import sys
from unetpp_workflows.registry import register_package
print(register_package(sys.argv[1], "raced"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["database", "server"])
def test_first_use_by_many_machines_at_once(
    kind: str,
    postgres: Database,
    request: pytest.FixtureRequest,
    ink_variant: Callable[..., Path],
    tmp_path: Path,
    own_home: Path,
) -> None:
    """Processes with home folders of their own share no file lock, like machines; the database is empty before."""
    environment = os.environ.copy()
    if kind == "server":
        found: Server = request.getfixturevalue("running")
        environment |= {**found.environment(), "MLFLOW_TRACKING_URI": found.uri}
    else:
        environment["MLFLOW_TRACKING_URI"] = postgres.create("raced")
    packages = [ink_variant(tmp_path / f"p{k}", 60 + k) for k in range(3)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, str(folder)],
            env={**environment, "UNETPP_HOME": str(tmp_path / f"home{k}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k, folder in enumerate(packages)
    ]
    told = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert sorted(out.strip() for out, _ in told) == ["1", "2", "3"]
