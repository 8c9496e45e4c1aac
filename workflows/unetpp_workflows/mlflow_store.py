"""The MLflow store that unetpp uses and how to open it safely; knows nothing of models, runs or images.

The default is one SQLite file with an artifact folder beside it in the user's unetpp folder; --tracking-uri or
MLFLOW_TRACKING_URI name another. MLflow's process-wide state is not used, only its environment variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from unetpp.errors import OutputError, RegistryError, UnetppError
from unetpp.home import home

_LOCK_SECONDS = 120.0
_ADVISORY_KEY = 0x756E657470702B2B
"""Bytes of "unetpp++": nothing else in the database is likely to lock this number."""
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "disk is full")
"""What the errors of a disk without room say: of artifacts, and of SQLite."""
_ADVICE = (
    *((full, "free disk space and run the same command again") for full in _FULL),
    ("Invalid Host header", "name this host and port in the server's own --allowed-hosts"),
    ("error code 401", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ("error code 403", "this user may not do that: ask whoever runs the server"),
)
"""What to do about an error in whose text this is found, the first that is."""
_SOON_S, _PAUSES = 1.0, 10
"""A store that took longer than this to fail is left alone for so many times as long."""
_SERVER = ("http://", "https://")
_ready: set[str] = set()


@dataclasses.dataclass
class Silence:
    """Until when (monotonic clock) a store that did not answer is left alone, and what was wrong with it."""

    until: float = -math.inf
    why: str = ""

    def holds(self) -> bool:
        return time.monotonic() < self.until

    def begin(self, asked: float, why: str) -> None:
        """Take note of an error of a store that was asked at a moment; one that came at once costs nothing again."""
        now = time.monotonic()
        if (took := now - asked) > _SOON_S:
            self.until, self.why = now + _PAUSES * took, why


def store_uri(tracking_uri: str | None = None) -> str:
    """Return the MLflow URI in use: the option, else MLFLOW_TRACKING_URI, else SQLite in `home()`."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def init_store(uri: str) -> Any:
    """Return an `MlflowClient` on `uri`, creating the database on first use.

    Two processes that create one SQLite schema at the same time leave a database that never opens again, so the
    first contact of every process with a database happens under a file lock; with PostgreSQL, which several machines
    may reach, under a lock in the database too.

    Raises:
        RegistryError: the database is damaged or from another MLflow, or the server does not answer.
        OutputError: the database's folder cannot be written.
    """
    first = uri not in _ready and not uri.startswith(_SERVER)
    with contextlib.ExitStack() as held:
        if first:
            held.enter_context(locked(uri))
        held.enter_context(registry_errors(uri))
        if first and uri.startswith("postgres"):
            held.enter_context(_database_locked(uri))
        client = import_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        if uri not in _ready:
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
            _ready.add(uri)
    return client


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold this machine's lock on the store; a thread that holds it may take it again."""
    path = (_sqlite_file(uri) or home() / "mlflow.server").with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=_LOCK_SECONDS, is_singleton=True)
        lock.acquire()
    except TimeoutError as error:
        raise RegistryError(f"{path} was held for {_LOCK_SECONDS:g} s by another process; end it or wait") from error
    except OSError as error:
        raise OutputError(f"cannot write {path.parent}: {error.strerror}; set UNETPP_HOME or --tracking-uri") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _database_locked(uri: str) -> Iterator[None]:
    """Hold a PostgreSQL advisory lock; it ends with its connection, however the process ends."""
    from sqlalchemy import NullPool, create_engine, text

    with create_engine(uri, poolclass=NullPool).connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_KEY})
        yield


def experiment(client: Any, uri: str, name: str) -> str:
    """Return the id of an experiment, created on first use with its artifacts beside the database.

    Raises:
        RegistryError: it was deleted, and MLflow neither writes to it nor makes another of its name.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise RegistryError(
                f"MLflow store {shown(uri)}: the experiment {name} was deleted; `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}` brings it back"
            )
        return str(found.experiment_id)
    location = None
    if not uri.startswith(_SERVER):  # a server decides itself where artifacts go
        database = _sqlite_file(uri)
        location = ((database.parent if database else home()) / "mlartifacts" / name).as_uri()
    with locked(uri):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        with made_elsewhere():
            return str(client.create_experiment(name, artifact_location=location))
        return str(client.get_experiment_by_name(name).experiment_id)


def runs_of(client: Any, uri: str, name: str, wanted: str) -> list[Any]:
    """Return all runs of an experiment that a filter takes, newest first; none where it does not exist yet."""
    found: list[Any] = []
    with registry_errors(uri):
        where, token = client.get_experiment_by_name(name), None
        while where is not None:
            page = client.search_runs([where.experiment_id], wanted, max_results=500, page_token=token)
            found += page
            token = page.token
            if not token:
                break
    return found


@contextmanager
def made_elsewhere() -> Iterator[None]:
    """Pass over the error of making what another machine, which shares no lock with this one, has just made."""
    mlflow = import_mlflow()
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def quoted(text: str) -> str:
    """Return a text as MLflow's filters take it; another team's model may have an apostrophe in its name."""
    quote = '"' if "'" in text else "'"
    return f"{quote}{text}{quote}"


@contextmanager
def registry_errors(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, the database and the artifacts' disk into one line with the store, without its password.

    Raises:
        RegistryError: instead of any of them.
    """
    from sqlalchemy.exc import SQLAlchemyError

    exceptions = import_mlflow().exceptions
    try:
        yield
    except UnetppError:
        raise
    except (exceptions.MlflowException, SQLAlchemyError, OSError) as error:
        first = (str(error).replace(uri, shown(uri)).strip().splitlines() or ["no message"])[0]
        advice = next((told for said, told in _ADVICE if said in first), "check --tracking-uri or `mlflow db upgrade`")
        raise RegistryError(f"MLflow store {shown(uri)}: {shown(first)[:300]}; {advice}") from error


def shown(text: str) -> str:
    """Return a URI, or a message with URIs in it, without user names and passwords, those of its query included.

    As SQLAlchemy reads URIs, a password may hold slashes; where it holds an @, all up to the last one is left out.
    """
    # It may hold spaces, too; within a message a space ends the URI.
    inside = "." if re.match(r"(?!https?:)[\w+]+://", text) else r"\S"
    text = re.sub(rf"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)(?:(?!&){inside})*", r"\1***", text)
    return re.sub(rf"(?<!///)(?<=//)[^/:\s]*(?::{inside}*)?@", "", text)


def import_mlflow() -> Any:
    """Import MLflow quietly: no telemetry, bars or migration log, and seconds rather than minutes for a dead server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Otherwise it draws bars of its own over ours wherever tqdm happens to be installed.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    first = "mlflow" not in sys.modules
    import mlflow

    if first:  # after the import, which sets its own levels
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # It logs every error of the database with its traceback, and then raises it.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(uri).database
    return Path(database).absolute() if database and database != ":memory:" else None
