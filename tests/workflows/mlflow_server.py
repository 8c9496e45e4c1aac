"""A real MLflow server on a real PostgreSQL, with users and an artifact proxy, for tests that need one."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ADMIN = "admin"


@dataclass(frozen=True)
class Database:
    """A running PostgreSQL that only this machine reaches, by a socket in a folder."""

    folder: Path

    def uri(self, name: str) -> str:
        return f"postgresql://unetpp@/{name}?host={self.folder}"

    def create(self, name: str) -> str:
        """Make an empty database and return its URI."""
        run = [str(_program("createdb")), "-h", str(self.folder), "-U", "unetpp", name]
        subprocess.run(run, check=True, timeout=60)
        return self.uri(name)


@dataclass(frozen=True)
class Server:
    """A running MLflow server."""

    uri: str
    password: str
    artifacts: str
    restart: Callable[[], None]

    def environment(self, user: str = ADMIN, password: str | None = None) -> dict[str, str]:
        """Return what MLflow's client reads a user from."""
        return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password or self.password}


@contextmanager
def database() -> Iterator[Database]:
    """Start PostgreSQL in a new folder; as another user where this is root, whom it refuses."""
    initdb = _program("initdb")
    if initdb is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    user = ("postgres" if _exists("postgres") else "nobody") if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="unetpp-pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, user)
    process = None
    try:
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-U", "unetpp", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"],
            check=True, timeout=120, user=user, stdout=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        settings = ("listen_addresses=", "fsync=off", f"unix_socket_directories={folder}")
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [_program("postgres"), "-D", data, *(part for setting in settings for part in ("-c", setting))],
                user=user, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        _wait(lambda: (folder / ".s.PGSQL.5432").exists() and _answers(folder), process, log.name)
        yield Database(folder)
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)
        shutil.rmtree(folder)
        Path(f"{folder}.log").unlink(missing_ok=True)


@contextmanager
def server(database: Database, folder: Path, artifacts: str | None = None, **settings: str) -> Iterator[Server]:
    """Start an MLflow server that asks for a name and a password; clients send artifacts through it.

    Args:
        artifacts: where it keeps them: a URI, or in `folder`.
        settings: environment variables of the server.
    """
    pytest.importorskip("psycopg", reason="needs psycopg: pip install unetpp[server]")
    store, users = database.create("mlflow"), database.create("users")
    password, artifacts = secrets.token_urlsafe(16), artifacts or str(folder / "artifacts")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\nadmin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # else every request hashes the password for a third of a second
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", artifacts, "--app-name", "basic-auth",
    ]  # fmt: skip
    environment = {
        **os.environ,
        **settings,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (folder / "server.log").open("ab") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
        _wait(lambda: _healthy(port), processes[-1], str(folder / "server.log"))

    def stop() -> None:
        os.killpg(processes[-1].pid, 15)  # it starts workers
        processes[-1].wait(60)

    def restart() -> None:
        stop()
        start()

    try:
        start()
        yield Server(f"http://127.0.0.1:{port}", password, artifacts, restart)
    finally:
        stop()


def _program(name: str) -> Path | None:
    """Return a program of PostgreSQL; Debian keeps them out of the path."""
    found = shutil.which(name)
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return Path(found) if found else installed[-1] if installed else None


def _exists(user: str) -> bool:
    import pwd

    return any(entry.pw_name == user for entry in pwd.getpwall())


def _answers(folder: Path) -> bool:
    command = [str(_program("psql")), "-h", str(folder), "-U", "unetpp", "-d", "postgres", "-c", "select 1"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait(ready: object, process: subprocess.Popen[bytes], log: str, seconds: float = 200) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < end, Path(log).read_text(errors="replace")[-3000:]
        time.sleep(0.2)
