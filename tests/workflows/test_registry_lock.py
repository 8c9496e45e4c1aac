"""One process at a time holds a model's aliases; a dead holder's lock ends, and a holder that was away notices."""

from __future__ import annotations

import itertools
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from unetpp.errors import PromotionError
from unetpp_workflows.mlflow_store import init_store, store_uri
from unetpp_workflows.registry import list_models
from unetpp_workflows.registry_lock import RegistryLock

DIE = """
import os, signal, sys
from unetpp_workflows.mlflow_store import init_store
from unetpp_workflows.registry_lock import RegistryLock
uri, seconds = sys.argv[1], float(sys.argv[2])
with RegistryLock(init_store(uri), uri, "ink", seconds=seconds):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def client(ready_home: Path) -> Any:
    return init_store(store_uri())


def lock(client: Any, seconds: float = 60, name: str = "ink") -> RegistryLock:
    return RegistryLock(client, store_uri(), name, seconds=seconds)


def entities(client: Any) -> list[str]:
    return [model.name for model in client.search_registered_models()]


def test_the_second_is_told_who_holds_it_and_nothing_is_left(client: Any) -> None:
    with lock(client) as held:
        held.check()
        with (
            pytest.raises(PromotionError, match=r"\(process \d+\) is changing the aliases of 'ink', for at most"),
            lock(client),
        ):
            pass
        with lock(client, name="other"), lock(client, name="in_k"):
            pass
        assert entities(client) == ["ink.unetpp-lock.1"] and list_models() == []
        held.check()
    assert entities(client) == []
    with lock(client):
        pass


def test_a_killed_holder_is_waited_for_and_then_passed_by(client: Any) -> None:
    done = subprocess.run([sys.executable, "-c", DIE, store_uri(), "60"], timeout=120, check=False)
    assert done.returncode == -9 and entities(client) == ["ink.unetpp-lock.1"]
    with pytest.raises(PromotionError, match="for at most"), lock(client):
        pass
    client.set_registered_model_tag("ink.unetpp-lock.1", "unetpp.lock.expires", str(time.time() - 1))
    with lock(client) as taken:
        assert sorted(entities(client)) == ["ink.unetpp-lock.1", "ink.unetpp-lock.2"]
        taken.check()
        with pytest.raises(PromotionError), lock(client):
            pass
    assert entities(client) == []


def test_a_holder_that_was_away_too_long_moves_nothing(client: Any) -> None:
    with lock(client, seconds=0.2) as slow:
        time.sleep(0.3)
        with pytest.raises(PromotionError, match="lost its lock"):
            slow.check()
        with lock(client) as fresh:
            with pytest.raises(PromotionError, match="lost its lock"):
                slow.check()
            slow.__exit__(None, None, None)  # it deletes its own, not the newer one
            fresh.check()
    assert entities(client) == []


def test_a_name_with_an_apostrophe_is_locked_too(client: Any) -> None:
    with RegistryLock(client, store_uri(), "Bob's model") as held:
        held.check()
        with (
            pytest.raises(PromotionError, match="is changing the aliases"),
            RegistryLock(client, store_uri(), "Bob's model"),
        ):
            pass


def test_a_holder_that_was_away_deletes_no_lock_of_its_name_that_is_anothers(client: Any) -> None:
    slow = lock(client, seconds=0.2)
    slow.__enter__()
    time.sleep(0.3)
    with lock(client):
        pass  # finds the one left behind, and deletes both
    with lock(client) as other:
        assert entities(client) == ["ink.unetpp-lock.1"], "named as the one that was left behind"
        slow.__exit__(None, None, None)
        other.check()
    assert entities(client) == []


def _hold_often(uri: str, seconds: float) -> list[tuple[float, float]]:
    """Take the lock as often as it is given; return when it was held."""
    client, held, end = init_store(uri), [], time.time() + seconds
    while time.time() < end:
        try:
            with RegistryLock(client, uri, "ink", seconds=60) as mine:
                start = time.time()
                time.sleep(0.02)
                mine.check()
                held.append((start, time.time()))
        except PromotionError:
            time.sleep(0.01)
    return held


@pytest.mark.slow
def test_processes_never_hold_it_together(client: Any) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_hold_often, store_uri(), 10.0) for _ in range(4)]
        held = [future.result() for future in futures]
    assert sum(map(bool, held)) >= 2, "one process alone proves nothing"
    spans = sorted(span for found in held for span in found)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    assert entities(client) == []
