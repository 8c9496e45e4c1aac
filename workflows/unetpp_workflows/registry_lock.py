"""Lets one process at a time move a model's aliases, whatever machine it runs on; knows an MLflow registry and a clock.

MLflow sets aliases unconditionally and has no locks, but two registered models cannot have one name: whoever creates
`NAME.unetpp-lock.1` holds the lock, and deletes it afterwards. A holder that died leaves it; when its time is over the
next one creates `.2` beside it, which again only one can, and deletes both when it is done. A lock that is over is
never replaced in place, because two processes could both do that.
"""

from __future__ import annotations

import getpass
import logging
import os
import platform
import time
import uuid
from types import TracebackType
from typing import Any, Self

from unetpp.errors import PromotionError, RegistryError
from unetpp_workflows.mlflow_store import import_mlflow, quoted, registry_errors
from unetpp_workflows.registry import LOCK_MARK

SECONDS = 120.0
_HOLDER, _EXPIRES, _TOKEN = "unetpp.lock.holder", "unetpp.lock.expires", "unetpp.lock.token"


class RegistryLock:
    """Holds the aliases of one registered model while the block runs.

    Args:
        client, uri: the MLflow store.
        name: of the registered model.
        seconds: after which others take the lock to be left behind. Clocks of all machines must agree to far less.

    Raises:
        PromotionError: another process holds it; the message says who, and until when.
    """

    def __init__(self, client: Any, uri: str, name: str, *, seconds: float = SECONDS) -> None:
        self._client, self._uri, self._name, self._seconds = client, uri, name, seconds
        self._token = uuid.uuid4().hex
        self._entity = ""

    def __enter__(self) -> Self:
        mlflow = import_mlflow()
        now = time.time()
        with registry_errors(self._uri):
            others = self._entities()
            self._refuse(others, now)
            self._entity = f"{self._name}{LOCK_MARK}{max(map(_generation, others), default=0) + 1}"
            tags = {_HOLDER: holder(), _EXPIRES: f"{now + self._seconds:.3f}", _TOKEN: self._token}
            try:
                self._client.create_registered_model(self._entity, tags=tags)
            except mlflow.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                raise self._held(self._entities()) from None
            others = {name: tags for name, tags in self._entities().items() if name != self._entity}
            try:
                self._refuse(others, now)
            except PromotionError:
                self._delete(self._entity)
                raise
        return self

    def check(self) -> None:
        """Raise `PromotionError` unless the lock is still held; called before every step that cannot be undone."""
        with registry_errors(self._uri):
            found = self._entities()
        mine = found.get(self._entity, {})
        newest = max(map(_generation, found), default=0) == _generation(self._entity)
        if mine.get(_TOKEN) != self._token or float(mine[_EXPIRES]) < time.time() or not newest:
            raise PromotionError(
                f"this process was away too long and lost its lock on {self._name!r}; run the command again"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with registry_errors(self._uri):
                # Old ones first: while the newest stands, nobody takes the lock. One of our name may be another's by
                # now, who found none after this process had been away too long.
                now, mine = time.time(), _generation(self._entity)
                for name, tags in sorted(self._entities().items(), key=lambda item: _generation(item[0])):
                    over = _generation(name) < mine and float(tags.get(_EXPIRES, 0)) <= now
                    if over or tags.get(_TOKEN) == self._token:
                        self._delete(name)
        except RegistryError as failure:
            # What was to be done is done, or the error that it ended with says more; the lock ends by itself.
            told = "%s: the lock on %r could not be given back (%s); others wait until it ends, for at most %.0f s"
            logging.getLogger(__name__).warning(told, self._entity, self._name, failure, self._seconds)

    def _entities(self) -> dict[str, dict[str, str]]:
        """Return the lock's entities, newest or left behind, with their tags."""
        start = f"{self._name}{LOCK_MARK}"
        found = self._client.search_registered_models(f"name LIKE {quoted(f'{start}%')}", max_results=100)
        return {model.name: dict(model.tags) for model in found if model.name.startswith(start)}

    def _refuse(self, others: dict[str, dict[str, str]], now: float) -> None:
        alive = {name: tags for name, tags in others.items() if float(tags.get(_EXPIRES, 0)) > now}
        if alive:
            raise self._held(alive)

    def _held(self, found: dict[str, dict[str, str]]) -> PromotionError:
        tags = found[max(found, key=_generation)] if found else {}
        left = float(tags.get(_EXPIRES, 0)) - time.time()
        until = f", for at most {left:.0f} s more" if left > 0 else ""
        return PromotionError(
            f"{tags.get(_HOLDER, 'another process')} is changing the aliases of {self._name!r}{until}; run this again"
        )

    def _delete(self, name: str) -> None:
        mlflow = import_mlflow()
        try:
            self._client.delete_registered_model(name)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def holder() -> str:
    """Return who this process is, for people: user, machine, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = str(os.getuid())
    return f"{os.environ.get('MLFLOW_TRACKING_USERNAME') or user}@{platform.node()} (process {os.getpid()})"


def _generation(name: str) -> int:
    number = name.rpartition(".")[2]
    return int(number) if number.isdigit() else 0
