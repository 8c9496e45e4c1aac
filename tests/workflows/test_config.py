"""Run configuration: precedence, refusal of unknown keys, and what the result's hash depends on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from pydantic import ValidationError

from unetpp.errors import ConfigError
from unetpp_workflows.config import RunConfig, load_config


def test_settings_win_over_options_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "from-file"\n[engine]\nname = "torch"\nthreads = 3\nprecision = "bf16"\n')
    config = load_config(
        file,
        options={"engine.name": "openvino", "engine.precision": "fp32", "input.spacing": None},
        sets=["engine.precision=bf16", "executor.kind=ray", "truth.classes={Building=1}"],
    )
    assert (config.model, config.engine.threads, config.engine.name) == ("from-file", 3, "openvino")
    assert config.engine.precision == "bf16"
    assert config.executor.kind == "ray"
    assert config.truth.classes == {"Building": 1}
    assert config.executor.attempts == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.precison=bf16", "did you mean 'engine.precision'"),
        ("thread=2", "did you mean 'engine.threads'"),
        ("engine=3", "'engine' is a section"),
        ("tiling.core=8", ": tiling.core = 8: Input should be greater than or equal to 16"),
        ("input.spacing=0.25", "write it like 0.25um"),
        ("engine.threads", "section.key=value"),
    ],
)
def test_wrong_settings_are_refused_in_one_line_that_says_what_to_do(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sets=[setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("engine = [")
    with pytest.raises(ConfigError, match=r"bad\.toml: not readable as TOML"):
        load_config(tmp_path / "bad.toml")


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        RunConfig().engine.threads = 4  # type: ignore[misc]


def test_the_hash_depends_on_what_changes_results_and_on_nothing_else(tmp_path: Path) -> None:
    base = load_config().result_hash()
    for same in ("executor.kind=ray", "executor.workers=7", "tracking.uri=sqlite:///x.db", "model=other"):
        assert load_config(sets=[same]).result_hash() == base, same
    for other in ("input.spacing=0.5um", "input.tissue=none", "tiling.core=512", "engine.threads=2", "engine.tta=d4"):
        assert load_config(sets=[other]).result_hash() != base, other


def test_a_mask_counts_by_its_content(tmp_path: Path) -> None:
    masks = [tmp_path / "a.png", tmp_path / "b.png"]
    for mask in masks:
        mask.write_bytes(b"one")
    first, moved = (load_config(options={"input.mask": mask}).result_hash() for mask in masks)
    assert first == moved
    masks[0].write_bytes(b"two")
    assert load_config(options={"input.mask": masks[0]}).result_hash() != first


def test_a_mask_of_several_files_counts_by_what_is_in_them(tmp_path: Path) -> None:
    picture, folder, mosaic = tmp_path / "mask.png", tmp_path / "mask.zarr", tmp_path / "all.mosaic.toml"
    mosaic.write_text('rule = "first"\nparts = [{ uri = "part.png", x = 0, y = 0 }]\n')
    seen = set()
    for value in (1, 0):
        pixels = np.full((8, 8), value, np.uint8)
        for file in (picture, tmp_path / "part.png"):
            Image.fromarray(pixels).save(file)
            os.utime(file, ns=(value, value))
        zarr.create_array(folder, data=pixels, chunks=(8, 8), overwrite=True, fill_value=9)
        for mask in (picture.as_uri(), str(folder), folder.as_uri(), str(mosaic)):
            seen |= {load_config(options={"input.mask": mask}).result_hash() for _ in range(2)}
    assert len(seen) == 8


def test_what_belongs_to_a_file_counts_with_it(tmp_path: Path) -> None:
    """QGIS saves a GeoPackage into a file beside it, a Shapefile has its CRS there, and a VRT its pixels."""
    for option, name, beside in (
        ("input.region", "field.gpkg", "field.gpkg-wal"),
        ("input.region", "field.shp", "field.prj"),
        ("input.mask", "mask.tif", "mask.tif.msk"),
        ("input.mask", "mask.vrt", "pixels.tif"),
    ):
        source = "<VRTDataset><SourceFilename relativeToVRT='1'>pixels.tif</SourceFilename></VRTDataset>"
        (tmp_path / name).write_text(source)
        seen = set()
        for content in ("one", "another"):
            (tmp_path / beside).write_text(content)
            seen |= {load_config(options={option: str(tmp_path / name)}).result_hash() for _ in range(2)}
        assert len(seen) == 2, name
