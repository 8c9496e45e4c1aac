"""Tests of the compile gate itself: what it counts in machine code, and what it calls a violation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unetpp_kernels import catalogue, table

sys.path.append(str(Path(__file__).parent))  # the gate is a script, not a package

import gate
import sass

ROW = catalogue.usual("fp16")[0]
FUSED = table.depthwise_pointwise("fp16", "packed", "plain", 32, low=False, inner=False, even=True)
PLAIN = table.depthwise_pointwise("bf16", "single", "plain", 32, low=False, inner=False, even=True)
assert FUSED is not None and PLAIN is not None
GOOD = {
    "registers": 200,
    "spilled": 0,
    "matrix": 8,
    "wide_loads": 16,
    "per_element": 9.0,
    "barriers": 2,
    "shared": 1024,
}


def _code() -> sass.Code:
    """A loop over sources around steps of channel blocks, each around three columns; for the inside and the edge."""
    lines: list[str] = []
    for part, sums in (("inside", 4), ("edge", 9)):
        lines += [
            f".L_sources_{part}:",
            "IMAD R1, R2, R3, R4",
            f".L_step_{part}:",
            "MOV R1, R2",
            f".L_columns_{part}:",
            "@!P0 LDG.E.128 R4, desc[UR4][R2.64]",
            *["HFMA2 R4, R4, R5, R6"] * sums,
            "ISETP.NE.AND P1, PT, R1, 0x3, PT",
            f"@P1 BRA `(.L_columns_{part})",
            "BAR.SYNC.DEFER_BLOCKING 0x0",
            "HGMMA.64x32x16.F32 R24, R8, gdesc[UR8]",
            f"@P2 BRA `(.L_step_{part})",
            f"@P3 BRA `(.L_sources_{part})",
        ]
    lines += ["EXIT", ".L_end:", "BRA `(.L_end)", "NOP"]
    text = [x if x.startswith(".L") else f"        /*{16 * i:04x}*/    {x} ;" for i, x in enumerate(lines)]
    return sass.parsed("\n".join(text), registers=42)


def test_loops_and_their_nesting() -> None:
    code = _code()
    inside, edge = code.matrix_loops()
    assert [len(code.inside(loop)) for loop in (inside, edge)] == [1, 1]
    assert [len(code.around(loop)) for loop in (inside, edge)] == [1, 1]
    assert len(code.loops) == 6


def test_the_inside_of_the_image_counts_and_columns_run_three_times() -> None:
    assert FUSED is not None
    code = _code()
    steps = gate.steps(FUSED, code)
    assert list(steps) == [""]
    # Of one column: load, 4 sums, comparison, branch. Besides: a move, barrier, product, branch.
    assert gate.instructions(code, steps[""]) == 3 * 7 + 4
    figures = gate.figures(FUSED, code)
    assert figures["per_element"] == round(25 / (64 * 4 * 32 / (32 * 4)), 1)
    assert (figures["barriers"], figures["matrix"], figures["wide_loads"], figures["registers"]) == (1, 2, 2, 42)


def test_local_memory_is_counted_in_bytes() -> None:
    names = ("STL.64 [R1], R2", "@P0 STL [R1], R2", "LDL.128 R4, [R1]", "LDL.LU R4, [R1]")
    text = "\n".join(f"/*{16 * i:04x}*/ {name} ;" for i, name in enumerate(names))
    assert gate.figures(ROW, sass.parsed(text, 255))["spilled"] == 8 + 4 + 16 + 4


def _violated(**changed: object) -> Iterator[str]:
    assert FUSED is not None
    return gate.violations(FUSED, "90", {**GOOD, **changed})


def test_a_good_row_has_no_violations() -> None:
    assert list(_violated()) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"spilled": 8}, "spills: 8 bytes"),
        ({"matrix": 0}, "no matrix instructions"),
        ({"wide_loads": 0}, "no 128-bit loads"),
        ({"shared": 300_000}, "300000 bytes of shared memory"),
        ({"per_element": 10.4}, "10.4 instructions per element, the budget is 10"),
        ({"error": "PTXASError: no"}, "does not compile: PTXASError: no"),
    ],
)
def test_violations_say_what_is_wrong(changed: dict[str, object], words: str) -> None:
    (only,) = _violated(**changed)
    assert words in only


@pytest.mark.parametrize(
    ("row", "elements", "budget"),
    [
        (table.depthwise_backward("bf16", even=True), 32, 30),
        (table.depthwise_pointwise_backward("fp16", "plain", 64, inner=False), 48, 40),
        (table.pointwise_backward("bf16", "plain", 32), 16, 40),
        (table.with_norm(PLAIN), 32, 50),
    ],
    ids=["depthwise", "depthwise_pointwise", "pointwise", "through a norm"],
)
def test_gradients_and_norms_have_budgets(row: table.Row, elements: float, budget: float) -> None:
    assert gate.elements(row) == elements and gate.is_hot(row)
    assert list(gate.violations(row, "90", {**GOOD, "per_element": budget})) == []
    (only,) = gate.violations(row, "90", {**GOOD, "per_element": budget + 0.1})
    assert f"the budget is {budget}" in only


def test_a_loop_without_products_is_a_step_too() -> None:
    """The inside's, which is the shorter one."""
    row = table.depthwise_backward("bf16", even=True)
    lines = []
    for part, sums in (("inside", 4), ("edge", 9)):
        lines += [f".L_{part}:", "LDG.E R4, [R2.64]", *["FFMA R4, R4, R5, R6"] * sums, f"@P1 BRA `(.L_{part})"]
    text = [x if x.startswith(".L") else f"        /*{16 * i:04x}*/    {x} ;" for i, x in enumerate(lines)]
    assert gate.figures(row, sass.parsed("\n".join(text), 42))["per_element"] == round(6 / gate.elements(row), 1)


def test_known_exceptions_may_not_get_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FUSED is not None
    monkeypatch.setitem(gate.OVER_BUDGET, FUSED.name, (10.4, "reason"))
    assert list(_violated(per_element=10.4)) == []
    assert len(list(_violated(per_element=10.5))) == 1


def test_known_exceptions_are_rows_that_are_over_budget() -> None:
    rows = {row.name: row for row in catalogue.rows()}
    recorded = gate.read_snapshot()["rows"]
    for name, (figure, reason) in gate.OVER_BUDGET.items():
        found = recorded[name]["90"]
        assert max(found["per_element"], found.get("per_element_low", 0)) == figure > gate.budget_of(rows[name])
        assert reason


def test_slower_than_recorded_is_a_violation() -> None:
    slower = {**GOOD, "per_element": 9.5, "barriers": 3}
    assert [v.what for v in gate.changes("row", "90", GOOD, slower)] == [
        "per_element 9.5, recorded 9.0",
        "barriers 3, recorded 2",
    ]
    assert list(gate.changes("row", "90", GOOD, {**GOOD, "per_element": 9.4, "registers": 255})) == []


def test_differences_name_row_target_and_figures() -> None:
    old = {"gone": {"90": GOOD}, "same": {"90": GOOD}, "row": {"90": GOOD, "80": GOOD}}
    new = {"same": {"90": GOOD}, "row": {"90": {**GOOD, "registers": 210}, "80": GOOD}, "fresh": {"90": GOOD}}
    assert [line.split() for line in gate.compare(old, new)] == [
        ["gone", "gone"],
        ["90", "row:", "registers", "200", "->", "210"],
        ["new", "fresh"],
    ]


def test_the_snapshot_comes_back_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gate, "SNAPSHOT", tmp_path / "gate.json")
    assert gate.read_snapshot()["rows"] == {}
    gate.write_snapshot({"b": {"90": GOOD}, "a": {"90": GOOD, "gfx942": {"registers": 1}}})
    assert gate.read_snapshot()["rows"] == {"a": {"90": GOOD, "gfx942": {"registers": 1}}, "b": {"90": GOOD}}
    assert len((tmp_path / "gate.json").read_text().splitlines()) == 12
