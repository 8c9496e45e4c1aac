"""Tests that the dispatch table is closed: what a network launches are rows, and rows compile as gate.json records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import triton

from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.model.deploy import deploy
from unetpp_kernels import catalogue, norm_operators, operators, packing, table
from unetpp_kernels.gpu import launch, launch_backward, offline
from unetpp_kernels.table import Row

sys.path.append(str(Path(__file__).parent))  # the gate is a script, not a package

import gate

NOT_COMPILED_FOR = "86"
"""An architecture that no other test compiles for: Triton then asks its hook about every kernel."""

OPERATORS = ("depthwise_pointwise", "pointwise", "depthwise", "stem", "head")
Key = tuple[str, str]


class Recorded:
    """Stands for a kernel: notes what Triton would compile for a launch, and launches nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.params = kernel.params

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def record(*arguments: Any, **options: Any) -> None:
            assert all(size > 0 for size in grid)
            self.kernel.warmup(*arguments, grid=grid, **options)

        return record


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Key]]:
    """What Triton is asked to compile: kernel, argument types and alignment, constants, warps and stages."""
    found: list[Key] = []

    def refuse(*, key: str, fn: Any, **_: Any) -> bool:
        found.append((fn.name, str(key)))
        return True

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", refuse)
    with offline.compiling_for(NOT_COMPILED_FOR):
        yield found


@pytest.fixture
def by_key(keys: list[Key]) -> dict[Key, Row]:
    """Every row by what compiling it asks of Triton."""
    found: dict[Key, Row] = {}
    for row in catalogue.rows():
        offline.compile_row(row)
        found[keys.pop()] = row
    return found


@pytest.fixture
def launched(
    keys: list[Key], by_key: dict[Key, Row], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], set[Row]]]:
    """Rows launched since the last call; a launch that is no row fails."""
    for name, kernel in launch.KERNELS.items():
        monkeypatch.setitem(launch.KERNELS, name, Recorded(kernel))

    def take() -> set[Row]:
        unknown = [key for key in keys if key not in by_key]
        assert not unknown, f"launched, but no row of the table: {unknown[0]}"
        rows = {by_key[key] for key in keys}
        keys.clear()
        return rows

    return take


def test_rows_are_unique() -> None:
    rows = list(catalogue.rows())
    assert len({row.name for row in rows}) == len(rows) == len(set(rows))


def test_multiples_of_32_are_even_for_every_row() -> None:
    assert all(32 % row["BLOCK_K"] == 0 for row in catalogue.rows() if dict(row.constants).get("EVEN"))


def test_every_row_compiles_to_something_else(by_key: dict[Key, Row]) -> None:
    assert len(by_key) == len(list(catalogue.rows()))


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "fp32")]
)
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
def test_the_default_network_launches_only_its_usual_rows(
    conv: str,
    dtype: torch.dtype,
    name: table.Dtype,
    upsample: str,
    launched: Callable[[], set[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = _network_rows({"conv": conv, "upsample": upsample}, dtype, launched, monkeypatch)
    assert rows <= set(catalogue.usual(name))
    assert {"stem", "depthwise_pointwise"} <= {row.kernel for row in rows}


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
@pytest.mark.parametrize("packed", [None, True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_odd_networks_launch_only_rows(
    conv: str,
    packed: bool | None,
    dtype: torch.dtype,
    launched: Callable[[], set[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {"conv": conv, "filters": (5, 24, 70, 130), "bands": 7, "classes": 20}
    assert _network_rows(config, dtype, launched, monkeypatch, packed=packed)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_how_much_fp32_may_round_is_the_users_switch(
    precision: str, launched: Callable[[], set[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        rows = _network_rows({"filters": (32, 64)}, torch.float32, launched, monkeypatch)
    finally:
        torch.set_float32_matmul_precision(before)
    found = {dict(row.constants)["DOT"] for row in rows if row.kernel == "pointwise"}
    assert found == {"tf32" if precision == "medium" else "tf32x3"}


def test_tensors_that_start_anywhere_are_launched_as_aligned_ones(launched: Callable[[], set[Row]]) -> None:
    weight = torch.zeros(1 + 32 * 32, dtype=torch.float16)[1:].view(32, 32)
    bias = torch.zeros(33)[1:]
    x = torch.zeros(1 + 32 * 64, dtype=torch.float16)[1:].view(1, 8, 8, 32).permute(0, 3, 1, 2)
    launch.pointwise([x], weight, bias, None, pool=False, relu=True, mode="bilinear")
    launch.depthwise(x, weight[:9], bias, relu=True, stride=1, dilation=1, packed=True)
    assert len(launched()) == 2


@pytest.mark.parametrize(("side", "stride", "dilation"), [(5, 1, 1), (3, 2, 1), (3, 1, 2)])
@pytest.mark.parametrize("packed", [True, False])
def test_other_depthwise_sizes_launch_rows(
    side: int, stride: int, dilation: int, packed: bool, launched: Callable[[], set[Row]]
) -> None:
    x = torch.zeros(1, 32, 8, 8, dtype=torch.float16)
    taps = packing.taps(torch.zeros(32, 1, side, side), torch.float16 if packed else torch.float32)
    launch.depthwise(x, taps, None, relu=False, stride=stride, dilation=dilation, packed=packed)
    assert {row.kernel for row in launched()} == {"depthwise_any"}


def test_more_sources_than_a_kernel_reads(launched: Callable[[], set[Row]]) -> None:
    sources = [torch.zeros(1, 32, 4, 4, dtype=torch.float16) for _ in range(9)]
    taps, mix = torch.zeros(9, 288, dtype=torch.float16), torch.zeros(32, 288, dtype=torch.float16)
    launch.depthwise_pointwise(
        sources, None, taps, None, mix, None, None, inner_relu=False, relu=True, mode="bilinear", packed=True
    )
    assert len(launched()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [32, 64, 128, 48, 7])
def test_gradients_launch_only_rows(dtype: torch.dtype, channels: int, launched: Callable[[], set[Row]]) -> None:
    g = torch.zeros(2, channels, 6, 4, dtype=dtype)
    x = [torch.zeros(2, channels, 6, 4, dtype=dtype) for _ in range(2)]
    mix, taps = torch.zeros(channels, 2 * channels, dtype=dtype), torch.zeros(9, 2 * channels)
    launch_backward.pointwise(g, x, mix)
    for inner in (False, True):
        launch_backward.depthwise_pointwise(g, x, taps, None, mix, inner_relu=inner)
    launch_backward.depthwise(torch.cat(x, 1), x[1], taps, channels)
    for mode in ("bilinear", "nearest"):
        launch_backward.upsample(g, mode)
    assert {"depthwise_backward", "upsample_backward"} <= {row.kernel for row in launched()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [32, 64, 128, 160, 7])
def test_batch_norm_launches_only_rows(dtype: torch.dtype, channels: int, launched: Callable[[], set[Row]]) -> None:
    x, low = torch.zeros(2, channels, 6, 4, dtype=dtype), torch.zeros(2, channels, 3, 2, dtype=dtype)
    taps, phases, vector = torch.zeros(9, 2 * channels), torch.zeros(4, 4, 3, 3, channels), torch.zeros(channels)
    norm_operators.depthwise_moments(x, taps[:, :channels].contiguous())
    wide, both = torch.zeros(channels, 2 * channels, dtype=dtype), torch.zeros(2 * channels)
    for vectors in ([], [both, both, both]):
        norm_operators.depthwise_pointwise_moments([x], low, taps, phases, wide, "bilinear", vectors)
        norm_operators.depthwise_pointwise_moments([x, x], None, taps, None, wide, "bilinear", vectors)
    norm_operators.moments(torch.zeros(2, channels, 100, 90, dtype=dtype))
    norm_operators.normalise(x, vector, vector, vector, True)
    norm_operators.normalise_sums(x, x, vector, vector, vector, True)
    norm_operators.normalise_backward(x, x, vector, vector, vector, torch.zeros(2, channels), True)
    norm_operators.normalised_max_pool(x, vector, vector, vector)
    norm_operators.normalised_max_pool_backward(low, x, vector, vector, vector)
    mix = torch.zeros(channels, channels, dtype=dtype)
    norm_operators.normalised_pointwise([x], vector, vector, vector, mix, None, None, "bilinear")
    norm_operators.normalised_pointwise_backward(x, [x], vector, vector, vector, mix)
    for mode in ("bilinear", "nearest"):
        norm_operators.normalised_pointwise([x, x], both, both, both, wide, None, low, mode)
    norm_operators.normalised_pointwise_backward(x, [x, x], both, both, both, wide)
    rows = launched()
    reading = {row.kernel for row in rows if "NORM" in dict(row.constants)}
    assert ("pointwise" in reading) == (channels % 32 == 0 and channels != 160)
    assert ("depthwise_pointwise" in reading) == (channels in table.WIDTHS)
    assert ("pointwise_backward" in reading) == (channels == 32 or (channels in (64, 128) and dtype != torch.float32))
    assert {"moments", "join", *get_args(table.Normalise)} <= {row.kernel for row in rows}
    fused = {row.kernel for row in rows if "MOMENTS" in dict(row.constants)}
    assert ("depthwise" in fused) == (channels % 32 == 0)


def test_the_gate_has_seen_every_row() -> None:
    snapshot = gate.read_snapshot()["rows"]
    assert set(snapshot) == {row.name for row in catalogue.rows()}, "run `make kernels-update` and commit gate.json"
    for row in catalogue.rows():
        assert set(snapshot[row.name]) == set(gate.TARGETS), row.name
        for target, figures in snapshot[row.name].items():
            assert not list(gate.violations(row, target, figures)), (row.name, target)


def _sample() -> list[Row]:
    """Rows the default network spends its time in, and a few others."""
    rows = [row for row in catalogue.rows() if gate.is_hot(row) and dict(row.constants).get("BLOCK_N", 32) == 32]
    kinds = {row.kernel: row for row in catalogue.usual("fp16") if row.kernel != "depthwise_pointwise"}
    return [*rows, kinds["pointwise"], kinds["depthwise"], kinds["depthwise_head"]]


@pytest.mark.parametrize("row", _sample(), ids=lambda row: row.name)
def test_rows_compile_as_recorded(row: Row) -> None:
    snapshot = gate.read_snapshot()
    found = gate.measure(row, "90")
    assert not list(gate.violations(row, "90", found))
    if snapshot["triton"] == triton.__version__:
        assert found == snapshot["rows"][row.name]["90"], "the gate is out of date: run `make kernels-update`"


def _network_rows(
    config: dict[str, Any],
    dtype: torch.dtype,
    launched: Callable[[], set[Row]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    packed: bool | None = None,
) -> set[Row]:
    """Return what a deployed network launches for labels, probabilities and logits, of bytes and of floats.

    Results are whatever lay in memory: nothing is computed.
    """
    launchers = {name: staticmethod(getattr(operators, name)) for name in OPERATORS}
    monkeypatch.setattr(import_module("unetpp.model.deploy"), "_OPERATORS", type("Launchers", (), launchers))
    model = UNetPlusPlus(GridConfig(**{"bands": 3, "classes": 3, **config})).eval()
    bands, classes = model.config.bands, model.config.classes
    network = deploy(model, mean=[0.0] * bands, std=[1.0] * bands, values=range(classes), dtype=dtype, packed=packed)
    for kind in (torch.uint8, torch.float32):
        pixels = torch.zeros(1, network.multiple, network.multiple, bands, dtype=kind)
        network.labels(pixels)
        network.probabilities(pixels)
        network.logits(pixels)
    return launched()
