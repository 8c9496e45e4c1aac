"""Compiles every row of the dispatch table for every target and checks what came out; needs no GPU.

    make kernels                        check against gate.json; about 20 minutes on two cores
    .venv/bin/python tests/kernels/gate.py --update         write gate.json instead
    .venv/bin/python tests/kernels/gate.py --rows 'depthwise_pointwise fp16 ' --targets 90

Nothing outside the table can be launched, so what passes here is all that a user's GPU will ever run. gate.json holds
the figures of every row, so that a change shows its effect in review.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sass
import triton
from sass import Code, Loop

from unetpp_kernels import catalogue, table
from unetpp_kernels.table import Row

SNAPSHOT = Path(__file__).with_name("gate.json")
TARGETS = ("80", "90", "100", "gfx942")
SHARED = {"80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory one program may have."""

STEPPED = ("80", "90")
"""Targets whose steps over channel blocks are one loop each; sm_100 splits them around its asynchronous products."""

TOLERANCE = 1.05
"""How much a row may exceed its recorded instructions per element, barriers and registers not counted."""

BUDGET = {True: 10.0, False: 21.0}
"""Most instructions per element on sm_90 of packed and of fp32 accumulation, where the network spends its time."""

NORM_BUDGET = 50.0
"""The same where sources are read through a batch norm: five more for each of the 4.5 loads of an element."""

BACKWARD_BUDGET = {"depthwise_backward": 30.0, "depthwise_pointwise_backward": 40.0, "pointwise_backward": 40.0}
"""Most instructions per element on sm_90 of the gradients; the least are 18 multiply-adds for the depthwise one."""

STEPPED_KERNELS = ("depthwise_pointwise", "depthwise_head", *BACKWARD_BUDGET)
"""Kernels whose time is that of one step, repeated: over channel blocks, and in gradients over tiles."""


def _name(
    dtype: table.Dtype, accumulate: table.Accumulate, width: int, *, low: bool, inner: bool, moments: bool = False
) -> str:
    row = table.depthwise_pointwise(dtype, accumulate, "plain", width, low=low, inner=inner, even=True)
    assert row is not None
    chosen = table.with_moments(row) if moments else row
    assert chosen is not None
    return chosen.name


OVER_BUDGET: dict[str, tuple[float, str]] = {
    _name("fp16", "packed", 64, low=False, inner=True): (10.1, "bias and activation between the two convolutions"),
    _name("fp16", "packed", 64, low=True, inner=False): (10.2, "taller or wider blocks spill on sm_80 or sm_100"),
    _name("bf16", "single", 64, low=False, inner=True): (22.0, "bias and activation between the two convolutions"),
    _name("bf16", "single", 32, low=True, inner=False): (21.8, "with four warps 19.1, but registers spill"),
    _name("bf16", "single", 64, low=True, inner=False): (22.0, "wider blocks spill on sm_90"),
    _name("bf16", "single", 32, low=True, inner=False, moments=True): (21.8, "the same loop as without moments"),
    _name("bf16", "single", 64, low=True, inner=False, moments=True): (22.0, "the same loop as without moments"),
}
"""Rows known to be over budget: name to measured figure and why it stays."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with one row on one target."""

    row: str
    target: str
    what: str

    def __str__(self) -> str:
        return f"{self.target:>6}  {self.row}: {self.what}"


def measure(row: Row, target: str) -> Figures:
    """Compile a row for a target; what cannot be compiled has the one figure "error"."""
    from unetpp_kernels.gpu import offline

    try:
        with offline.compiling_for(target):
            kernel = offline.compile_row(row)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and each is a finding
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
    shared = kernel.metadata.shared
    if target.startswith("gfx"):
        return _amd_figures(kernel.asm["amdgcn"]) | {"shared": shared}
    return figures(row, sass.read(kernel.asm["cubin"]), steps_wanted=target in STEPPED) | {"shared": shared}


def figures(row: Row, code: Code, *, steps_wanted: bool = True) -> Figures:
    """Return what the snapshot keeps of a row's NVIDIA code."""
    found: Figures = {
        "registers": code.registers,
        "spilled": code.spilled + sum(i.bytes for i in code.instructions if i.kind == "LDL"),
        "matrix": sum(i.is_matrix for i in code.instructions),
        "wide_loads": sum(i.is_wide_load for i in code.instructions),
    }
    if not steps_wanted or row.kernel not in STEPPED_KERNELS:
        return found
    for name, loop in steps(row, code).items():
        found[f"per_element{name}"] = round(instructions(code, loop) / elements(row), 1)
        found[f"barriers{name}"] = loop.count("BAR")
    return found


def steps(row: Row, code: Code) -> dict[str, Loop]:
    """Return the loop over channel blocks of the sources (in gradients: over tiles) as "", of the upsampled as "_low".

    Of the loops for the image's inside and its edge, this is the inside's: it masks nothing and is the shorter one.
    """
    loops = code.matrix_loops() or [loop for loop in code.loops if loop.is_arithmetic]
    if not loops:
        return {}
    if not dict(row.constants).get("LOW"):
        return {"": min(loops, key=lambda loop: instructions(code, loop))}
    # Blocks of the sources are walked inside the loop over sources; those of `low` are not.
    found = {}
    for name, wanted in (
        ("", [x for x in loops if code.around(x)]),
        ("_low", [x for x in loops if not code.around(x)]),
    ):
        if wanted:
            found[name] = min(wanted, key=lambda loop: instructions(code, loop))
    return found


def instructions(code: Code, loop: Loop) -> int:
    """Instructions of one step: the loop over three columns inside it, where there still is one, runs three times."""
    return len(loop.body) + 2 * sum(len(inner.body) for inner in code.inside(loop) if inner.is_arithmetic)


def elements(row: Row) -> float:
    """Pairs of pixel and input channel that one lane works on in one step."""
    sizes = dict(row.constants)
    pixels = sizes.get("BLOCK_M") or sizes.get("G", 1) * row["BLOCK_W"] * row["R"]
    return int(pixels) * row["BLOCK_K"] / (32 * row.warps)


def violations(row: Row, target: str, found: Figures) -> Iterator[str]:
    """Yield what is wrong with a row whatever the snapshot says."""
    if "error" in found:
        yield f"does not compile: {found['error']}"
        return
    if found["shared"] > SHARED[target]:
        yield f"{found['shared']} bytes of shared memory, {SHARED[target]} is the limit"
    if target.startswith("gfx"):
        return
    constants = dict(row.constants)
    if found["spilled"]:
        yield f"spills: {found['spilled']} bytes of local memory traffic per lane"
    if "DOT" in constants and not found["matrix"]:
        yield "no matrix instructions"
    # Rows without the switch EVEN are for even widths only, or read narrow things: pixels, a head's few weights.
    if constants.get("EVEN", row.kernel.endswith("pointwise_backward")) and not found["wide_loads"]:
        yield "no 128-bit loads"
    if target == "90" and is_hot(row):
        for name in ("per_element", "per_element_low"):
            yield from _over_budget(row, found.get(name, 0.0))


def budget_of(row: Row) -> float:
    if row.kernel in BACKWARD_BUDGET:
        return BACKWARD_BUDGET[row.kernel]
    return NORM_BUDGET if "NORM" in dict(row.constants) else BUDGET[bool(row["PACKED"])]


def is_hot(row: Row) -> bool:
    """Whether the row runs in levels 0 and 1 of the default network: 16-bit types, channels in multiples of 32."""
    constants = dict(row.constants)
    if row.kernel in BACKWARD_BUDGET:
        # No network has a bias or an activation between two convolutions while it is trained.
        usual = constants.get("EVEN", True) and not constants.get("INNER") and constants.get("BLOCK_N", 32) != 128
        return row.dtype in ("fp16", "bf16") and bool(usual)
    wide = row.kernel == "depthwise_pointwise" and constants["BLOCK_N"] in (32, 64)
    kind = (row.dtype, bool(constants.get("PACKED")))
    return wide and bool(constants["EVEN"]) and kind in (("fp16", True), ("bf16", False))


def changes(name: str, target: str, old: Figures, new: Figures) -> Iterator[Violation]:
    """Yield what is worse than recorded by more than the tolerance."""
    for key in ("per_element", "per_element_low"):
        if key in old and new.get(key, 0) > old[key] * TOLERANCE:
            yield Violation(name, target, f"{key} {new[key]}, recorded {old[key]}")
    for key in ("barriers", "barriers_low"):
        if key in old and new.get(key, 0) > old[key]:
            yield Violation(name, target, f"{key} {new[key]}, recorded {old[key]}")


def compare(old: Mapping[str, Mapping[str, Figures]], new: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """Return a line for every figure that differs, and for rows on one side only."""
    lines = [f"  gone   {name}" for name in old if name not in new]
    for name, targets in new.items():
        if name not in old:
            lines.append(f"  new    {name}")
            continue
        for target, now in targets.items():
            before = old[name].get(target, {})
            parts = [
                f"{key} {before.get(key)} -> {now.get(key)}"
                for key in {**before, **now}
                if before.get(key) != now.get(key)
            ]
            if parts:
                lines.append(f"  {target:>6} {name}: {', '.join(parts)}")
    return lines


def read_snapshot() -> dict[str, Any]:
    return json.loads(SNAPSHOT.read_text()) if SNAPSHOT.is_file() else {"triton": "", "rows": {}}


def write_snapshot(rows: Mapping[str, Mapping[str, Figures]]) -> None:
    """Write one line per row and target, so that a review shows which changed."""
    blocks = []
    for name, targets in sorted(rows.items()):
        lines = ",\n".join(f'   "{target}": {json.dumps(found)}' for target, found in targets.items())
        blocks.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    body = ",\n".join(blocks)
    SNAPSHOT.write_text(f'{{\n "triton": "{triton.__version__}",\n "rows": {{\n{body}\n }}\n}}\n')


def compile_all(rows: Sequence[Row], targets: Sequence[str], processes: int) -> dict[str, dict[str, Figures]]:
    """Measure all rows on all targets, with a line of progress."""
    jobs = [(row, target) for target in targets for row in rows]
    found: dict[str, dict[str, Figures]] = {row.name: {} for row in rows}
    start = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(measure, row, target): (row, target) for row, target in jobs}
        for done, future in enumerate(as_completed(pending), 1):
            row, target = pending[future]
            found[row.name][target] = future.result()
            passed = time.monotonic() - start
            left = passed / done * (len(jobs) - done)
            if done % 20 == 0 or sys.stderr.isatty():
                _progress(f"{done} of {len(jobs)} compiled in {passed / 60:.0f} min, about {left / 60:.0f} min to go")
    _progress("")
    return {name: {target: by[target] for target in targets} for name, by in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    rows = [row for row in catalogue.rows() if options.rows in row.name]
    if not rows:
        raise SystemExit(f"no row's name holds {options.rows!r}")
    with _cache():
        found = compile_all(rows, options.targets, options.processes)
    wrong = [
        Violation(row.name, target, what)
        for row in rows
        for target, figures in found[row.name].items()
        for what in violations(row, target, figures)
    ]
    snapshot = read_snapshot()
    old = {name: by for name, by in snapshot["rows"].items() if options.rows in name}
    if options.update:
        kept = {name: by for name, by in snapshot["rows"].items() if options.rows not in name}
        merged = {name: {**old.get(name, {}), **by} for name, by in found.items()}
        write_snapshot({**kept, **merged})
    else:
        wrong += [
            worse
            for name, by in found.items()
            for target, now in by.items()
            for worse in changes(name, target, old.get(name, {}).get(target, {}), now)
        ]
    return _report(wrong, compare(old, found), snapshot["triton"], bool(options.update))


def _report(wrong: Sequence[Violation], differences: Sequence[str], version: str, updated: bool) -> int:
    for violation in wrong:
        print(violation)
    print(f"{len(wrong)} violations" if wrong else "every row holds: no spills, within shared memory and budgets")
    if differences:
        verb = "Written to" if updated else "Different from"
        print(f"{verb} {SNAPSHOT.name} (Triton {version}, here {triton.__version__}):")
        print("\n".join(differences))
    if differences and not updated:
        print("If this is what the change meant to do: make kernels-update, and commit gate.json with it.")
    return 1 if wrong or (differences and not updated) else 0


def _over_budget(row: Row, per_element: float) -> Iterator[str]:
    budget = budget_of(row)
    known, _ = OVER_BUDGET.get(row.name, (budget, ""))
    if per_element > max(budget, known):
        yield f"{per_element} instructions per element, the budget is {budget} and the known exception {known}"


def _amd_figures(assembly: str) -> Figures:
    return {
        name: _amd_figure(assembly, key) for name, key in (("registers", "vgpr_count"), ("spilled", "vgpr_spill_count"))
    }


def _amd_figure(assembly: str, key: str) -> int:
    return next((int(line.split(":")[1]) for line in assembly.splitlines() if line.strip().startswith(f".{key}:")), 0)


def _cache() -> tempfile.TemporaryDirectory[str]:
    """A cache for this run alone: a gate compiles. Set TRITON_CACHE_DIR to keep it."""
    folder = tempfile.TemporaryDirectory(prefix="gate-")
    os.environ.setdefault("TRITON_CACHE_DIR", folder.name)
    return folder


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compile every row of the kernels' dispatch table and compare with gate.json; needs no GPU."
    )
    parser.add_argument("--update", action="store_true", help="write gate.json instead of comparing with it")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name holds this text")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS, help="only these targets")
    parser.add_argument("--processes", type=int, default=2, help="how many compile at once (default: 2)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
