"""Cores and instructions of a machine, read from files written here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unetpp_workflows.machine import cpu_count, cpu_flags


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_container_quota_limits_the_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    free = cpu_count(tmp_path / "absent")
    assert free == len(os.sched_getaffinity(0))
    assert cpu_count(file) == (cores or free)


def test_flags_come_from_the_first_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(file) == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(tmp_path / "absent") == frozenset()
