"""Tests that a warmed cache is the one that launches look into, and what the command says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unetpp_kernels import catalogue, table, warmup
from unetpp_kernels.gpu import launch, offline

ROW = table.depthwise_any("fp16", even=True)
LAUNCH = """
import torch
from unetpp_kernels.gpu import launch, offline

class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.kernel.warmup(*arguments, grid=grid, **options)

launch.KERNELS["depthwise_any"] = Compiled(launch.KERNELS["depthwise_any"])
with offline.compiling_for("90"):
    x, taps = torch.zeros(1, 64, 9, 7, dtype=torch.float16), torch.zeros(25, 64)
    launch.depthwise(x, taps, None, relu=True, stride=2, dilation=1, packed=True)
"""


def test_a_launch_in_another_process_finds_what_the_command_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(catalogue, "usual", lambda dtype: [ROW])
    launch.KERNELS[ROW.kernel].device_caches.clear()  # what this process compiled before is not in this folder
    assert warmup.main(["--arch", "90"]) == 0
    filled = _files(tmp_path)
    assert any(path.endswith(".cubin") for path in filled)
    subprocess.run(
        [sys.executable, "-c", LAUNCH], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert _files(tmp_path) == filled
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1 kernels into {tmp_path}"
    assert lines[1].startswith("[1/1] 90") and lines[1].endswith(ROW.name)
    assert lines[2].startswith("1 kernels ready in")


def test_training_adds_gradients_and_statistics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[table.Row] = []
    monkeypatch.setattr(warmup, "warm", lambda rows, arch: compiled.extend(rows))
    assert warmup.main(["--arch", "90", "--dtype", "bf16", "--training"]) == 0
    assert set(catalogue.usual("bf16")) < set(compiled) and len(set(compiled)) == len(compiled)
    kernels = {row.kernel for row in compiled}
    assert {"depthwise_backward", "normalise_sums", "join", "depthwise_pointwise_backward"} <= kernels
    assert any("MOMENTS" in dict(row.constants) for row in compiled)
    capsys.readouterr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_asks_for_an_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert warmup.main([]) == 2
    assert "--arch 90" in capsys.readouterr().err


def test_an_unknown_architecture_is_named_before_anything_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        warmup.main(["--arch", "hopper"])
    assert "'hopper' is no architecture: write 80, 90" in capsys.readouterr().err


def test_each_architecture_gets_its_own_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    for arch in ("80", "90"):
        with offline.compiling_for(arch):
            found.append(offline.compile_row(ROW).metadata.target.arch)
    assert found == [80, 90]


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
