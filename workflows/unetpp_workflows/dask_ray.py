"""Runs a Dask graph on a Ray cluster, one task of the graph as one task of Ray; knows neither images nor stores.

    dask.compute(*tasks, scheduler=RayScheduler())

Dask's own order decides what starts first, a bounded number of tasks is under way, and a result that another task
needs stays in Ray's store until the last such task has it. `ray.util.dask` rebuilds dataclasses inside tasks (so a
graph that holds a Zarr array fails) and replaces `dask.persist` for the whole process; this does neither.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Any

_PER_CPU = 2


def execute(node: Any, keys: tuple[Any, ...], *values: Any) -> Any:
    """Run one task of a graph in a worker; what it computes with Dask itself stays in that worker."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        return node(dict(zip(keys, values, strict=True)))


class RayScheduler:
    """A scheduler for `dask.compute`; Ray must be initialised.

    Args:
        workers: tasks under way at once; twice the cluster's CPUs when 0.
        retries: of a task whose worker died. An error of the task itself is raised at once, as the task raised it.
        on_task: called in this thread after each finished task.
    """

    def __init__(self, workers: int = 0, retries: int = 3, on_task: Callable[[], None] | None = None) -> None:
        self._workers, self._retries, self._on_task = workers, retries, on_task

    def __call__(self, graph: Any, keys: Any, **_: Any) -> Any:
        """Compute the graph's `keys` (nested lists) and return their values in the same shape."""
        import ray
        from dask._task_spec import convert_legacy_graph
        from dask.utils import ensure_dict

        collection = graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else graph
        wanted = set(_flat(keys))
        nodes = _needed(convert_legacy_graph(ensure_dict(collection)), wanted)
        limit = self._workers or max(1, _PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(num_cpus=1, max_retries=self._retries)(execute)
        values = _Run(nodes, wanted, remote, self._on_task).drain(limit)
        found = dict(zip(values, _fetch(list(values.values())), strict=True))
        return _shaped(keys, found)


class _Run:
    """One graph under way: what is ready, what runs, and whose results are still needed."""

    def __init__(self, nodes: Mapping[Any, Any], wanted: set[Any], remote: Any, on_task: Any) -> None:
        from dask.order import order

        self._nodes, self._wanted, self._remote, self._on_task = nodes, wanted, remote, on_task
        self._rank: Mapping[Any, Any] = order(dict(nodes))
        self._missing = {key: set(node.dependencies) for key, node in nodes.items()}
        self._users: dict[Any, list[Any]] = {key: [] for key in nodes}
        for key, node in nodes.items():
            for dependency in node.dependencies:
                self._users[dependency].append(key)
        self._left = {key: len(users) for key, users in self._users.items()}
        self._ready = [(self._rank[key], number, key) for number, key in enumerate(nodes) if not self._missing[key]]
        heapq.heapify(self._ready)
        self._values: dict[Any, Any] = {}
        self._running: dict[Any, Any] = {}

    def drain(self, limit: int) -> dict[Any, Any]:
        """Return a reference or value for every wanted key."""
        import ray

        while self._ready or self._running:
            while self._ready and len(self._running) < limit:
                self._start(heapq.heappop(self._ready)[-1])
            if not self._running:
                continue
            for reference in ray.wait(list(self._running), num_returns=1, fetch_local=False)[0]:
                key = self._running.pop(reference)
                if not self._users[key]:
                    _fetch([reference])  # An error ends the run now, not after all other tasks.
                self._finish(key, reference)
                if self._on_task is not None:
                    self._on_task()
        return {key: self._values[key] for key in self._wanted}

    def _start(self, key: Any) -> None:
        from dask._task_spec import Alias, DataNode

        node = self._nodes[key]
        if isinstance(node, DataNode):
            self._finish(key, node.value)
        elif isinstance(node, Alias):
            self._finish(key, self._values[node.target])
        else:
            needs = tuple(node.dependencies)
            self._running[self._remote.remote(node, needs, *[self._values[need] for need in needs])] = key

    def _finish(self, key: Any, value: Any) -> None:
        self._values[key] = value
        for need in self._nodes[key].dependencies:
            self._left[need] -= 1
            if not self._left[need] and need not in self._wanted:
                del self._values[need]
        for user in self._users[key]:
            self._missing[user].discard(key)
            if not self._missing[user]:
                heapq.heappush(self._ready, (self._rank[user], len(self._ready), user))


def _needed(nodes: Mapping[Any, Any], wanted: set[Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    stack = list(wanted)
    while stack:
        key = stack.pop()
        if key not in found:
            found[key] = nodes[key]
            stack.extend(nodes[key].dependencies)
    return found


def _fetch(values: list[Any]) -> list[Any]:
    """Return what references stand for; raises the error of a task as the task raised it."""
    import ray

    try:
        return [ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in values]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _flat(keys: Any) -> list[Any]:
    return [key for part in keys for key in _flat(part)] if isinstance(keys, list) else [keys]


def _shaped(keys: Any, found: Mapping[Any, Any]) -> Any:
    return [_shaped(key, found) for key in keys] if isinstance(keys, list) else found[keys]
