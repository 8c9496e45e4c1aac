"""Patterns mean what they mean to Python where no link leads to a folder above; test_inputs has those that do."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from unetpp_workflows.patterns import matches

NAMES = ("1.png", "a/1.png", "a/c/1.png", "a/c/d/2.png", "a[1]/c/3.png", "ab/c/3.tif", ".x/4.png", "a/.x/4.png")


@pytest.mark.parametrize(
    "pattern", ["**/*.png", "**", "a*/**", "*/**/[12].png", "a/**/c/**/*.png", "a**/*.png", "**/a"]
)
def test_patterns_mean_what_they_mean_to_python(pattern: str, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    wanted = glob.glob(f"{tmp_path}/{pattern}", recursive=True)  # noqa: PTH207 (it follows links, Path.glob does not)
    faults: list[str] = []
    found = matches(f"{tmp_path}/{pattern}", lambda folder, error: faults.append(folder))
    assert set(map(Path, found)) == set(map(Path, wanted)) and not faults
