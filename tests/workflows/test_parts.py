"""An archive in parts is the archive as a whole: every shard in one part, the same bytes, no rival in the folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetpp.errors import ConfigError, StoreError
from unetpp.job import SegmentJob, progress
from unetpp_workflows.config import RunConfig, load_config
from unetpp_workflows.lease import Lease
from unetpp_workflows.parts import Part, segment_part
from unetpp_workflows.pipeline import segment


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    random = np.random.default_rng(3)
    for name, shape in {"a": (200, 150), "b": (60, 60), "c": (130, 300)}.items():
        Image.fromarray(random.integers(0, 255, (*shape, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def config(tiny_package: Path) -> RunConfig:
    options = {"tiling.core": 64, "tiling.shard": 64, "engine.name": "torch", "tracking.enabled": False}
    return load_config(options={**options, "model": str(tiny_package), "executor.workers": 1})


def products(output: Path) -> dict[str, str]:
    """Return the hash of every file of the result, without records, pages and logs, which hold times."""
    files = (file for file in output.glob("*/*") if file.suffix in (".geojson", ".tif"))
    stores = (file for file in output.glob("*/labels.ome.zarr/**/*") if file.is_file())
    return {str(f.relative_to(output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in [*files, *stores]}


def committed(output: Path, name: str) -> int:
    job = SegmentJob.load(output / name)
    assert job is not None
    return progress(job).committed


def test_parts_in_any_order_and_a_finish_make_the_bytes_of_one_run(
    archive: Path, config: RunConfig, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert segment([archive], output=whole, config=config).exit_code == 0
    done = []
    for index in (0, 3, 1, 2):
        assert segment_part([archive], parts, Part(index, 3), config=config) == 0
        done.append(sum(committed(parts, name) for name in "abc"))
        assert not list(parts.glob("*/record.json")), "only the finish says how an image ended"
    assert done[0] == 0 and done[3] == 4 * 3 + 1 + 3 * 5
    steps = np.diff(done)
    assert steps.max() - steps.min() <= 3, f"parts of very different size: {steps}"
    first = {file: file.stat().st_mtime_ns for file in parts.glob("*/commits/*")}
    assert segment([archive], output=parts, config=config).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in first} == first, "no shard is computed twice"
    assert products(parts) == products(whole)
    assert segment_part([archive], parts, Part(2, 3), config=config) == 0  # nothing is left, and nothing is lost
    assert products(parts) == products(whole)


def test_a_part_that_is_lost_is_made_by_the_finish(archive: Path, config: RunConfig, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for index in (0, 1):
        assert segment_part([archive], output, Part(index, 2), config=config) == 0
    assert segment([archive], output=output, config=config).exit_code == 0
    assert sum(committed(output, name) for name in "abc") == 28


def test_a_part_of_an_archive_that_is_not_prepared_says_what_to_do(
    archive: Path, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert segment_part([archive], output, Part(1, 2), config=config) == 1
    assert capsys.readouterr().out.count("--part 0/2 first") == 3
    segment_part([archive], output, Part(0, 2), config=config)
    (archive / "b.png").write_bytes((archive / "a.png").read_bytes())
    (archive / "c.png").write_bytes(b"no image")
    capsys.readouterr()
    assert segment_part([archive], output, Part(1, 2), config=config) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert len(failed) == 2 and "b.png is not prepared" in failed[0] and "c.png" in failed[1]


def test_a_part_says_why_an_image_could_not_be_prepared(
    archive: Path, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "c.png").write_bytes(b"no image")
    assert segment_part([archive], tmp_path / "out", Part(0, 2), config=config) == 1
    (why,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("failed"))
    assert segment_part([archive], tmp_path / "out", Part(1, 2), config=config) == 1
    (failed,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("failed"))
    assert failed.startswith(f"{why}; that mended") and "--part 0/2 again" in failed


@pytest.mark.parametrize("text", ["3", "3/2", "1/0", "-1/2", "a/b"])
def test_a_wrong_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 3/8"):
        Part.parse(text)


def test_parts_hold_the_folder_together_and_against_others(tmp_path: Path) -> None:
    with Lease(tmp_path, part="1-of-4"), Lease(tmp_path, part="2-of-4"):
        for other in (None, "1-of-4", "1-of-2"):
            with pytest.raises(StoreError, match="being written"), Lease(tmp_path, part=other):
                pass
    with Lease(tmp_path), pytest.raises(StoreError, match="being written"), Lease(tmp_path, part="1-of-4"):
        pass
    assert not list(tmp_path.glob(".lease*"))
