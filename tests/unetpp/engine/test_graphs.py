"""A graph computes the same bits whether it was made, kept, damaged or could not be kept; who has it needs no torch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import unetpp
import unetpp_kernels
from unetpp.engine import choose_engine
from unetpp.engine.exporter import Exporter
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
    monkeypatch.setattr(Exporter, "graph", None)
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


def test_a_kept_graph_needs_no_torch(package: Package, user: Path) -> None:
    choose_engine(package, name="openvino", tile_shape=(32, 48))
    code = (
        "import sys, numpy as np; from unetpp.engine import choose_engine; from unetpp.package import load_package; "
        f"engine = choose_engine(load_package({str(package.folder)!r}), name='openvino', tile_shape=(32, 48)); "
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


FIRST_USE = """
import hashlib, sys, numpy as np
from psutil import Process
from unetpp.engine import exporting_process
from unetpp.engine.openvino import OpenVinoEngine
from unetpp.package import load_package
pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
package = load_package(sys.argv[1])
{before}
engine = OpenVinoEngine(package)
{between}
labels = [engine.labels(pixels), engine.labels(pixels, (16, 16, 16, 16))]
print(hashlib.sha256(b"".join(found.tobytes() for found in labels)).hexdigest(), "torch" in sys.modules)
{after}
"""


def first_use(package: Path, user: Path, before: str = "", between: str = "", after: str = "") -> tuple[list[str], str]:
    """Return what a process that computes two kinds of tiles with a new engine says, and of what it complains."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE.format(before=before, between=between, after=after), str(package)],
        env={**os.environ, "UNETPP_HOME": str(user), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split(), done.stderr


CHILDREN = "print(len(Process().children()))"


@pytest.fixture(scope="module")
def expected(package: Package, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checksum of the labels of an engine that exports in its own process."""
    words, _ = first_use(package.folder, tmp_path_factory.mktemp("own"), "import torch", between=CHILDREN)
    assert words[::2] == ["0", "True"]
    return words[1]


def test_first_use_leaves_torch_to_a_process_that_ends(package: Package, user: Path, expected: str) -> None:
    words, complaints = first_use(package.folder, user, between=CHILDREN, after=CHILDREN)
    assert words == ["1", expected, "False", "0"] and complaints == ""
    assert len(files(user)) == 6


def test_an_engine_that_is_not_used_lets_its_process_go(package: Package, user: Path, expected: str) -> None:
    between = "import time; time.sleep(1); " + CHILDREN
    words, _ = first_use(package.folder, user, "exporting_process._PATIENCE_S = 0.2", between)
    assert words == ["0", expected, "False"]


def test_a_process_that_is_killed_before_it_is_asked_is_started_again(
    package: Package, user: Path, expected: str
) -> None:
    words, _ = first_use(package.folder, user, between="[child] = Process().children(); child.kill(); child.wait()")
    assert words == [expected, "False"]


@pytest.mark.parametrize(
    "shell",
    [
        "",
        "echo no; exec sleep 600",
        "sleep 600 & exit 1",
        "ulimit -f 0; exec {} $@",
        "(sleep .3; kill -9 $$) & exec {} $@",
    ],
    ids=["does not start", "is no Python", "leaves another", "cannot write", "is killed"],
)
def test_where_the_other_process_fails_graphs_are_made_here(
    package: Package, user: Path, expected: str, shell: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    if shell:
        python.write_text("#!/bin/sh\n" + shell.format(sys.executable).replace("$@", '"$@"') + "\n")
        python.chmod(0o755)
    before = f"sys.executable = {str(python)!r}; exporting_process._LIMIT_S = {2 if 'sleep 600' in shell else 60}"
    words, complaints = first_use(package.folder, user, before, CHILDREN, CHILDREN)
    assert words[1:] == [expected, "True", "0"] and complaints == ""
    assert words[0] == ("1" if "-f 0" in shell else "0")  # one that can load, but not keep


def test_what_python_prints_as_it_starts_is_no_answer(
    package: Package, user: Path, expected: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho welcome\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    words, _ = first_use(package.folder, user, f"sys.executable = {str(python)!r}", CHILDREN)
    assert words == ["1", expected, "False"]


def test_the_path_of_modules_may_hold_what_is_no_text(package: Package, user: Path, expected: str) -> None:
    before = "from pathlib import Path; sys.path.append(Path('.'))"
    words, _ = first_use(package.folder, user, before, CHILDREN)
    assert words == ["1", expected, "False"]


def test_a_package_that_is_gone_is_told_in_words(make_package: Callable[..., Package], user: Path) -> None:
    other = make_package()
    OpenVinoEngine(other).logits(PIXELS)
    engine = OpenVinoEngine(other)
    shutil.rmtree(other.folder)
    with pytest.raises(ModelPackageError, match="cannot be read any more"):
        engine.logits(np.zeros((96, 128, 3), np.uint8), (16, 16, 16, 16))


def test_an_unwritable_home_needs_no_other_process(package: Package, expected: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    words, complaints = first_use(package.folder, tmp_path / "file", "exporting_process.subprocess = None")
    assert words == [expected, "True"] and complaints == ""


CUT = "weights = package.folder / 'weights.safetensors'; weights.write_bytes(weights.read_bytes()[:-4])"
OTHER = "(package.folder / 'model.json').open('a').write(' ')"


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("change", [CUT, OTHER], ids=["damaged", "changed"])
def test_a_package_that_is_not_sound_is_told_in_the_same_words(
    package: Package, user: Path, known: bool, change: str, tmp_path: Path
) -> None:
    """At once where no graph is known, else by the first tile that needs another graph."""
    if known:
        OpenVinoEngine(package).logits(PIXELS)
    told = []
    for torch in ("import torch", ""):
        shutil.copytree(package.folder, tmp_path / "other", dirs_exist_ok=True)
        words, complaints = first_use(tmp_path / "other", user, f"{torch}\n{change}", between="print('made')")
        assert words == ["made"] * known and "unetpp.errors.ModelPackageError: " in complaints
        told.append(complaints.splitlines()[-1])
    assert told[0] == told[1]
    assert len(files(user)) == 3 * known


PARENT = """
import os, sys, time
from psutil import Process
from unetpp.engine.openvino import OpenVinoEngine
from unetpp.package import load_package
engine = OpenVinoEngine(load_package(sys.argv[1]))
[child] = Process().children()
if {forks} and not os.fork():
    time.sleep(15)
    os._exit(0)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("ending", "forks"),
    [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGKILL, False), (signal.SIGKILL, True)],
)
def test_no_process_is_left_behind(package: Package, user: Path, ending: signal.Signals, forks: bool) -> None:
    """Nor where a fork, which has the same pipes, lives on."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(forks=forks), str(package.folder)],
        env={**os.environ, "UNETPP_HOME": str(user), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(ending)
        parent.wait(timeout=20)
        psutil.wait_procs([child], timeout=5)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # nobody may collect an orphan here


def test_threads_that_need_a_graph_at_once_make_it_once(package: Package, user: Path, expected: str) -> None:
    between = """
from concurrent.futures import ThreadPoolExecutor
asked = []
keep = engine._elsewhere.keep
engine._elsewhere.keep = lambda key: asked.append(key.name) or keep(key)
started = []
Popen = exporting_process.subprocess.Popen
exporting_process.subprocess.Popen = lambda *args, **how: started.append(args) or Popen(*args, **how)
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(engine.labels, [pixels] * 4, [(0,) * 4, (16,) * 4] * 2))
print(len(asked), len(started))
"""
    words, _ = first_use(package.folder, user, between=between)
    assert words == ["2", "0", expected, "False"]


def test_a_process_finds_its_modules_where_this_one_does(package: Package, user: Path, tmp_path: Path) -> None:
    """Here by the folder of the call alone, which Python writes as nothing."""
    roots = [Path(module.__file__).parent for module in (unetpp, unetpp_kernels)]
    for root in roots:
        (tmp_path / root.name).symlink_to(root)
    code = (
        "import sys; from unetpp.engine.openvino import OpenVinoEngine; from unetpp.package import load_package; "
        "import unetpp; assert unetpp.__file__.startswith(sys.argv[2]); "
        "engine = OpenVinoEngine(load_package(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "UNETPP_HOME": str(user)}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, str(package.folder), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
