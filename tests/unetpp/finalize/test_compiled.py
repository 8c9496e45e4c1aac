"""Compiled loops work where their machine code cannot be kept, and free other threads while they run."""

from __future__ import annotations

import threading
import time

import numpy as np

from unetpp.finalize.compiled import compiled


def test_code_without_a_place_for_its_cache_is_compiled_all_the_same() -> None:
    names: dict[str, object] = {}
    exec("def double(values):\n    return values * 2", names)  # noqa: S102  # of no file: Numba finds no folder for it
    double = compiled(names["double"])
    assert double(np.arange(3)).tolist() == [0, 2, 4]


@compiled
def spin(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total ^= number * total + 1
    return total


def test_other_threads_go_on_meanwhile() -> None:
    spin(1)
    rounds = 1000
    while True:  # until a call lasts a good while on this machine
        clock = time.perf_counter()
        spin(rounds)
        if time.perf_counter() - clock > 0.5:
            break
        rounds *= 2
    thread = threading.Thread(target=spin, args=(rounds,))
    thread.start()
    seen = 0
    while thread.is_alive():
        time.sleep(0.001)
        seen += 1
    assert seen > 10
