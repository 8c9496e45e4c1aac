"""Passwords of the MLflow store are shown nowhere, however its URI is written; what was deleted in it is named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from unetpp.errors import RegistryError
from unetpp_workflows.config import load_config
from unetpp_workflows.mlflow_store import experiment, init_store, shown, store_uri
from unetpp_workflows.steps import shown_config

URIS = [
    "postgresql+psycopg://mlflow:aB/9xSecret@host:1/mlflow",
    "postgresql://mlflow:Secret@host/mlflow?connect_timeout=3",
    "postgresql://me@corp:Secret:/?#@host:5432/mlflow",
    "mysql+pymysql://me:a Secret b@host/mlflow",
    "postgresql://host/mlflow?user=me&password=aB/9xSecret&connect_timeout=3",
    "postgresql://host/mlflow?password=a Secret@b",
    "postgresql://mlflow@host/mlflow?sslpassword=Secret",
    "postgresql://host:5432/mlflow",
]


@pytest.mark.parametrize("uri", URIS)
def test_a_database_is_shown_as_sqlalchemy_reads_it_without_its_password(uri: str) -> None:
    found, whole = make_url(shown(uri)), make_url(uri)
    assert (found.username, found.password) == (None, None) and "Secret" not in shown(uri)
    for part in ("drivername", "host", "port", "database"):
        assert getattr(found, part) == getattr(whole, part), shown(uri)
    assert found.query.keys() == whole.query.keys() and found.query.get("connect_timeout") in (None, "3")
    assert "Secret" not in str(shown_config(load_config(options={"tracking.uri": uri})))


@pytest.mark.parametrize("uri", [uri for uri in URIS if " " not in uri] + ["http://me:aB/9xSecret@host:5000"])
def test_a_message_keeps_what_is_around_a_uri(uri: str) -> None:
    message = shown(f"cannot connect to {uri} (try 2 of 3), ask admin@example.com")
    assert message.startswith("cannot connect to ") and message.endswith(" (try 2 of 3), ask admin@example.com")
    assert "Secret" not in message and "://host" in message


@pytest.mark.parametrize("uri", ["http://me:se:Sec@ret@host:5000/x", "postgresql://me:a@Sec/ret@host/mlflow"])
def test_a_password_that_should_have_been_quoted_is_not_shown_in_part(uri: str) -> None:
    assert "Sec" not in shown(uri) and "ret" not in shown(uri) and "://host" in shown(uri)


@pytest.mark.parametrize("text", ["sqlite:////home/me@work/mlflow.db", "models:/nuclei@champion", "file:///a@b/c:d"])
def test_what_has_no_password_is_shown_whole(text: str) -> None:
    assert shown(text) == text


def test_the_error_of_a_database_that_does_not_answer_has_no_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"postgresql+psycopg://mlflow:aB/9x Secret@127.0.0.1:{port}/mlflow"
    with pytest.raises(RegistryError) as error:
        init_store(uri)
    assert f"postgresql+psycopg://127.0.0.1:{port}/mlflow: " in str(error.value)
    assert "Secret" not in str(error.value) and "aB" not in str(error.value)


def test_a_deleted_experiment_is_one_line_that_says_how_it_comes_back(ready_home: Path) -> None:
    client = init_store(uri := store_uri())
    number = experiment(client, uri, "unetpp-segmentation")
    client.delete_experiment(number)
    with pytest.raises(RegistryError, match=f"mlflow experiments restore --experiment-id {number}"):
        experiment(client, uri, "unetpp-segmentation")
    client.restore_experiment(number)
    assert experiment(client, uri, "unetpp-segmentation") == number
