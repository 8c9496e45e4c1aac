"""Calls one after the other, by their addresses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unetpp.native.machine import TARGETS
from unetpp.native.build import machine_code
from unetpp.native.emit import POINTER, Body, Code, Pointer
from unetpp.native.program import PART, RUN, program, run

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")


def test_functions_are_called_in_order_with_their_part() -> None:
    """Two functions on one array: each adds first, end and fresh to a sum, one of them ten times as much."""
    import ctypes

    target = next(iter(TARGETS.values()))

    def write() -> Code:
        code = Code(target)

        def add(times: int) -> None:
            def body(body: Body, given: Pointer) -> None:
                place = given + 8 * len(PART)
                total = place.number() * 10
                for number in range(len(PART)):
                    total = total + (given + 8 * number).number() * times
                place.put(total)

            code.function(f"add{times}", (POINTER,), body)

        add(1)
        add(3)
        run(code)
        return code

    machine = machine_code("test_program", write)
    once, thrice = (machine.address(name) for name in ("add1", "add3"))
    one, two = np.zeros(len(PART) + 1, np.int64), np.full(len(PART) + 1, 7, np.int64)
    calls = program([
        (once, one.ctypes.data, 4, 5, True), (thrice, two.ctypes.data, 1, 2, False),
        (thrice, one.ctypes.data, 2, 3, False),
    ])  # fmt: skip
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(machine.address(RUN))
    call(calls.ctypes.data, 0)
    assert one[-1] == 0 and two[-1] == 7
    call(calls.ctypes.data, len(calls))
    assert one.tolist() == [2, 3, 0, (4 + 5 + 1) * 10 + 3 * (2 + 3)]
    assert two.tolist() == [1, 2, 0, 70 + 3 * (1 + 2)]
