"""A graph computes the same bits whether it was made, kept, damaged or could not be kept; who has it needs no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from unetpp.engine import choose_engine
from unetpp.engine.graphs import _KEPT, _forget
from unetpp.engine.openvino import OpenVinoEngine
from unetpp.errors import ModelPackageError
from unetpp.package import WEIGHTS, Package, load_package

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Package]) -> Package:
    return make_package()


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "user"))
    yield tmp_path / "user"


def logits(package: Package) -> NDArray[np.float32]:
    engine = OpenVinoEngine(package)
    engine.labels(PIXELS)
    return engine.logits(PIXELS)


def files(user: Path) -> dict[str, bytes]:
    found = sorted(path for path in (user / "graphs").rglob("*") if path.is_file())
    return {str(path.relative_to(user)): path.read_bytes() for path in found}


def test_made_and_kept_graphs_compute_the_same_bits(package: Package, user: Path) -> None:
    made = logits(package)
    kept = files(user)
    assert len(kept) == 6 and len({Path(name).parts[1] for name in kept}) == 1
    np.testing.assert_array_equal(logits(package), made)
    assert files(user) == kept


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_where_nothing_can_be_kept_the_bits_are_the_same(
    package: Package, user: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = logits(package)
    if place == "a file":
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("UNETPP_HOME")
        monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
    np.testing.assert_array_equal(logits(package), made)


@pytest.mark.parametrize("damage", ["cut", "changed", "no sum", "empty"])
@pytest.mark.parametrize("name", ["graph.xml", "graph.bin"])
def test_a_damaged_graph_is_made_again(
    package: Package, user: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, kept = logits(package), files(user)
    for file in (user / "graphs").rglob(name):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes({"cut": content[:-8], "changed": content, "no sum": content, "empty": b""}[damage])
        if damage == "no sum":
            (file.parent / "sum").unlink()
    assert files(user) != kept
    np.testing.assert_array_equal(logits(package), made)
    assert files(user).keys() == kept.keys()
    monkeypatch.setattr(OpenVinoEngine, "_export", None)
    np.testing.assert_array_equal(logits(package), made)


def test_another_package_has_graphs_of_its_own(package: Package, user: Path, tmp_path: Path) -> None:
    logits(package)
    other = tmp_path / "other"
    shutil.copytree(package.folder, other)
    weights = bytearray((other / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (other / WEIGHTS).write_bytes(weights)
    assert not np.array_equal(logits(load_package(other)), logits(package))
    assert len(list((user / "graphs").iterdir())) == 2


def test_damaged_weights_are_told_before_the_first_tile(package: Package, user: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(package.folder, other)
    (other / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ModelPackageError):
        choose_engine(load_package(other), name="openvino")


def test_a_package_that_changes_under_an_engine_leaves_no_graph(package: Package, user: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(package.folder, other)
    opened = load_package(other)
    logits(opened)
    kept = files(user)
    engine = OpenVinoEngine(opened)  # which has not needed the weights so far
    weights = bytearray((other / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (other / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelPackageError, match="changed since it was opened"):
        engine.labels(PIXELS, (32, 32, 32, 32))
    assert files(user) == kept


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="a torch for GPUs is asked for one")
def test_a_kept_graph_needs_no_torch(package: Package, user: Path) -> None:
    engine = choose_engine(package, tile_shape=(32, 48))
    assert engine.name == "openvino"
    code = (
        "import sys, numpy as np; from unetpp.engine import choose_engine; from unetpp.package import load_package; "
        f"engine = choose_engine(load_package({str(package.folder)!r}), tile_shape=(32, 48)); "
        "assert not {'torch', 'unetpp_kernels'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "UNETPP_HOME": str(user)})


def test_a_graph_that_is_read_is_used(package: Package, user: Path) -> None:
    logits(package)
    [folder] = (user / "graphs").iterdir()
    os.utime(folder, (1000, 1000))
    logits(package)
    assert folder.stat().st_mtime > 1000


def test_what_was_not_used_for_long_is_forgotten(tmp_path: Path) -> None:
    for number in range(_KEPT + 3):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "graph").write_bytes(b"")
        os.utime(tmp_path / f"{number}", (1000 + number, 1000 + number))
    os.utime(tmp_path / "0")
    for name in (".part-new", ".part-old"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".part-old", (1000, 1000))
    _forget(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".part-new", "0", *(str(n) for n in range(4, _KEPT + 3))}
