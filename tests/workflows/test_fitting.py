"""How many workers memory has room for; machines with less of it are this one, told what it has left."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.engines import NATIVE
from unetpp_workflows import finishing, fitting, pipeline
from unetpp_workflows.config import RunConfig
from unetpp_workflows.parts import Part, segment_part
from unetpp_workflows.pipeline import segment
from unetpp_workflows.plan import print_plan


class Machine:
    """One of eight cores; `workers` are those that runs began with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.workers: list[int] = []
        self._patch = patch
        local = pipeline.run_local

        def run(*args: Any, workers: int, **options: Any) -> Any:
            self.workers.append(workers)
            return local(*args, workers=workers, **options)

        patch.setattr(pipeline, "worker_count", lambda *_, **__: 8)
        patch.setattr(pipeline, "run_local", run)

    def left(self, free: float | None) -> None:
        self._patch.setattr(fitting, "free_memory", lambda: free)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def image(folder: Path, side: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "image.png"
    Image.fromarray(np.arange(3 * side * side, dtype=np.uint8).reshape(side, side, 3)).save(path)
    return path


def config(package: str | Path, name: str = "auto", **executor: Any) -> RunConfig:
    engine = {"precision": "fp32", "name": name}
    tables = {"model": str(package), "executor": executor, "engine": engine, "tracking": {"enabled": False}}
    return RunConfig.model_validate(tables)


def labels(output: Path) -> str:
    files = sorted(path for path in (output / "image" / "labels.ome.zarr").rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_a_run_takes_as_many_workers_as_fit_and_says_so(tmp_path: Path, tiny_package: Path, machine: Machine) -> None:
    source = image(tmp_path, 600)

    def run(name: str, free: float | None, **executor: Any) -> str:
        machine.left(free)
        file, settings = io.StringIO(), config(tiny_package, **executor)
        summary = segment(source, output=tmp_path / name, config=settings, console=Console(file=file, width=500))
        assert summary.exit_code == 0
        return file.getvalue()

    assert "memory for" not in run("roomy", 64e9)
    assert "memory for" not in run("unknown", None)
    assert "memory for 1 of 8 workers: 0.2 GB are free" in run("short", 0.25e9)
    assert "memory for" not in run("asked", 0.25e9, workers=7)
    assert machine.workers == [8, 8, 1, 7]
    assert len({labels(tmp_path / name) for name in ("roomy", "short", "asked")}) == 1
    for index in (0, 1):
        assert segment_part([str(source)], tmp_path / "parts", Part(index, 1), config=config(tiny_package)) == 0
    assert machine.workers[4:] == [1]


@pytest.mark.parametrize(
    ("engine", "free_gb", "said", "total"),
    [
        # A tile of 1152 px takes 0.82 GB, the process 0.25.
        ("openvino", 8.0, "", "6.8 GB with 8 workers"),
        (
            "openvino",
            2.8,
            "memory for 3 of 8 workers: 2.8 GB are free, each takes about 0.8 GB",
            "2.7 GB with 3 workers",
        ),
        ("openvino", 1.0, "Not even one fits: --set tiling.core=768 takes 0.9 GB", "1.1 GB with 1 worker"),
        ("openvino", 0.6, "Not even one fits: --set tiling.core=512 takes 0.6 GB", "1.1 GB with 1 worker"),
        ("openvino", 0.3, "Not even one fits, however small its tiles", "1.1 GB with 1 worker"),
        # It takes 0.08 GB.
        *[(name, 8.0, "", "0.9 GB with 8 workers") for name in NATIVE],
        *[(name, 0.5, "memory for 3 of 8 workers: 0.5 GB are free", "0.5 GB with 3 workers") for name in NATIVE],
        *[(name, 0.25, "Not even one fits", "0.3 GB with 1 worker") for name in NATIVE],
    ],
)
def test_a_plan_says_what_fits(
    tmp_path: Path, machine: Machine, engine: str, free_gb: float, said: str, total: str
) -> None:
    machine.left(free_gb * 1e9)
    file = io.StringIO()
    source = image(tmp_path, 4096)
    assert print_plan([str(source)], config("nuclei", engine), None, Console(file=file, width=500)) == 0
    assert f"estimated memory: about {total}" in file.getvalue()
    assert said in file.getvalue() and (bool(said) or "memory for" not in file.getvalue())


def test_what_finishes_several_images_at_once_counts(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.left(None)
    sources, found = [str(image(tmp_path, 4096)), str(image(tmp_path / "b", 4096))], []
    for cores, inputs in ((4, sources), (16, sources[:1]), (16, sources)):
        monkeypatch.setattr(finishing, "cpu_count", lambda cores=cores: cores)
        file = io.StringIO()
        print_plan(inputs, config("nuclei", "openvino"), None, Console(file=file, width=500))
        found += re.findall(r"about (\S+) GB", file.getvalue())
    assert found == ["6.8", "6.8", "7.2"]


def test_workers_of_ray_are_processes(tmp_path: Path, machine: Machine) -> None:
    machine.left(3e9)
    source, found = image(tmp_path, 4096), []
    for kind in ("local", "ray"):
        file = io.StringIO()
        print_plan([str(source)], config("nuclei", "openvino", kind=kind), None, Console(file=file, width=500))
        found += [int(fits) for fits in re.findall(r"memory for (\d) of 8 workers", file.getvalue())]
    assert found == [3, 2]
