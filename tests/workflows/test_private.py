"""What a slide says of its patient reaches no output, log or record."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from tests.dicom import PATIENT, write_slide
from unetpp_workflows import pipeline
from unetpp_workflows.config import load_config

FAST = ("tracking.enabled=false", "engine.name=torch", "engine.precision=fp32", "tiling.core=128", "input.tissue=none")


def test_a_folder_of_dicom_slides_says_nothing_of_the_patient(ink_package: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).choice([20, 220], (30, 40)).astype(np.uint8)
    pixels = np.kron(pixels, np.ones((10, 10), np.uint8))[..., None].repeat(3, -1)
    write_slide(tmp_path / "archive/case_a", [pixels, pixels[::2, ::2]], 0.5)
    write_slide(tmp_path / "archive/case_b", [pixels[::-1], pixels[::-2, ::2]], 0.5)
    out, said = tmp_path / "out", io.StringIO()
    config = load_config(sets=list(FAST))
    summary = pipeline.segment([tmp_path / "archive"], ink_package, out, config=config, console=Console(file=said))
    assert [(image.name, image.status) for image in summary.images] == [("case_a", "done"), ("case_b", "done")]
    secrets = [PATIENT.encode(), b"Jane", b"4711", b"19700101"]
    assert all(secret in (tmp_path / "archive/case_a/level0.dcm").read_bytes() for secret in secrets)
    for file in (file for file in out.rglob("*") if file.is_file()):
        assert not any(secret in file.read_bytes() for secret in secrets[:2]), file
        if file.suffix in (".json", ".html", ".jsonl", ".csv"):
            assert b'"4711"' not in file.read_bytes() and b"19700101" not in file.read_bytes(), file
    assert PATIENT not in said.getvalue()
