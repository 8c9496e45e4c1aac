"""Labelled folders: the right split and labels come back, faults are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetpp.errors import DataError
from unetpp.train.data import DataConfig, fingerprint, load_samples, statistics

CONFIG = DataConfig(images="images/*.png", labels="labels/{stem}.png", group_pattern="^(s\\d)", validation=("s2",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for name in ("s1_a", "s1_b", "s2_a"):
        Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(random.integers(0, 4, (6, 8)).astype(np.uint16)).save(tmp_path / f"labels/{name}.png")
    return tmp_path


def test_split_by_group_never_by_image(folder: Path) -> None:
    training, validation = load_samples(CONFIG, folder)
    assert [s.name for s in training] == ["s1_a", "s1_b"]
    assert [s.group for s in validation] == ["s2"]
    assert np.array_equal(training[0].pixels, np.asarray(Image.open(folder / "images/s1_a.png")))


def test_table_names_split_and_group(folder: Path) -> None:
    (folder / "t.csv").write_text("id,split,type\ns1_a,val,x\ns1_b,train,y\ns2_a,train,x\n")
    training, validation = load_samples(replace(CONFIG, table="t.csv", validation=("val",)), folder)
    assert [(s.name, s.group) for s in validation] == [("s1_a", "x")]
    assert [(s.name, s.group) for s in training] == [("s1_b", "y"), ("s2_a", "x")]


def test_label_values_become_indices(folder: Path) -> None:
    raw = np.asarray(Image.open(folder / "labels/s1_a.png"))
    mapped = load_samples(replace(CONFIG, label_map={1: 0, 3: 1}), folder)[0][0].labels
    assert np.array_equal(mapped == 0, raw == 1) and np.array_equal(mapped == 1, raw == 3)
    assert np.array_equal(mapped == 255, (raw != 1) & (raw != 3))
    assert np.array_equal(load_samples(replace(CONFIG, instances=True), folder)[0][0].labels, (raw > 0).astype(int))


def test_statistics_are_those_of_all_pixels(folder: Path) -> None:
    training, _ = load_samples(CONFIG, folder)
    pixels = np.concatenate([s.pixels.reshape(-1, 3) for s in training]).astype(float)
    mean, std = statistics(training)
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-3)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-3)


def test_fingerprint_follows_every_label(folder: Path) -> None:
    training, _ = load_samples(CONFIG, folder)
    before = fingerprint(training)
    training[1].labels[5, 7] ^= 1
    assert fingerprint(training) != before


def test_faults_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no images match"):
        load_samples(replace(CONFIG, images="*.jpg"), folder)
    with pytest.raises(DataError, match="0 validation"):
        load_samples(replace(CONFIG, validation=("s9",)), folder)
    Image.new("L", (7, 6)).save(folder / "labels/s1_b.png")
    with pytest.raises(DataError, match=r"s1_b\.png is \(6, 7\)"):
        load_samples(CONFIG, folder)
    (folder / "labels/s1_b.png").unlink()
    with pytest.raises(DataError, match="has no labels"):
        load_samples(CONFIG, folder)
