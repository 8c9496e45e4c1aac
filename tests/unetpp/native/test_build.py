"""Machine code is kept, found again, and made again where what was kept is no good."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unetpp.native.machine import TARGETS
from unetpp.native import build
from unetpp.native.build import Machine, machine_code
from unetpp.native.emit import POINTER, Body, Code, Number, Pointer
from unetpp.native.target import Target

pytestmark = pytest.mark.skipif(not TARGETS, reason="no machine code for this CPU")
ROOT = Path(__file__).parents[3]


def answer(number: int) -> Code:
    """Return code whose function f writes a number."""
    code = Code(Target(8))

    def write(body: Body, to: Pointer) -> None:
        to.put(Number(body, body.i64(number)))

    code.function("f", (POINTER,), write)
    return code


def call(machine: Machine) -> int:
    import ctypes

    found = np.zeros(1, np.int64)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(machine.address("f"))(found.ctypes.data)
    return int(found[0])


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of object files of an empty home, for a process that has loaded none."""
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(build, "_loaded", {})
    return tmp_path / "home" / "code"


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes this process as new."""
    return lambda: monkeypatch.setattr(build, "_loaded", {})


def never() -> Code:
    raise AssertionError("compiled")


def test_code_is_compiled_once(code: Path, forget: Callable[[], None]) -> None:
    first = machine_code("forty-two", lambda: answer(42))
    assert call(first) == 42 and machine_code("forty-two", never) is first
    (kept,) = code.iterdir()
    content = kept.read_bytes()
    assert content[:32] == hashlib.sha256(content[32:]).digest()
    forget()
    os.utime(kept, (1, 1))
    assert call(machine_code("forty-two", never)) == 42
    assert kept.stat().st_mtime > 1, "it was not marked as used"


def test_other_facts_are_other_code(code: Path) -> None:
    """And both stay, in one process."""
    machines = [machine_code(str(number), lambda number=number: answer(number)) for number in (1, 2)]
    assert [call(machine) for machine in machines] == [1, 2] and len(list(code.iterdir())) == 2


@pytest.mark.parametrize("what", ["cpu", "features", "llvmlite", "source"])
def test_what_code_depends_on(code: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    machine_code("facts", lambda: answer(1))
    name = build._name("facts")
    assert [path.name for path in code.iterdir()] == [f"{name}.o"]
    if what == "cpu":
        monkeypatch.setattr(build.binding, "get_host_cpu_name", lambda: "another")
    elif what == "features":
        features: Any = build.binding.get_host_cpu_features()
        features["avx2"] = False
        monkeypatch.setattr(build.binding, "get_host_cpu_features", lambda: features)
    elif what == "llvmlite":
        monkeypatch.setattr(build, "llvmlite_version", "0.0")
    else:
        read = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b"#" * (self.name == "rows.py"))
    assert build._name("facts") != name


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "in the sum": lambda content: flipped(content, 5),
    "in the code": lambda content: flipped(content, 40),
    "at the end": lambda content: flipped(content, len(content) - 1),
    "cut": lambda content: content[:-1],
    "the sum alone": lambda content: content[:32],
    "less than a sum": lambda content: content[:7],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_made_again(code: Path, forget: Callable[[], None], damage: Callable[[bytes], bytes]) -> None:
    machine_code("facts", lambda: answer(7))
    (kept,) = code.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(damage(content))
    forget()
    assert call(machine_code("facts", lambda: answer(7))) == 7
    assert kept.read_bytes() == content and len(list(code.iterdir())) == 1


def test_a_folder_in_place_of_a_file(code: Path) -> None:
    build._start_llvm()
    (code / f"{build._name('facts')}.o" / "more").mkdir(parents=True)
    assert call(machine_code("facts", lambda: answer(7))) == 7
    assert len(list(code.iterdir())) == 1, "litter"


def test_those_not_used_for_long_go(code: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> None:
    monkeypatch.setattr(build, "_KEPT", 3)
    for number in range(3):
        machine_code(str(number), lambda number=number: answer(number))
    paths = {number: code / f"{build._name(str(number))}.o" for number in range(4)}
    for number in range(3):
        os.utime(paths[number], (100 + number, 100 + number))
    forget()
    machine_code("0", never)
    machine_code("3", lambda: answer(3))
    assert {number for number, path in paths.items() if path.exists()} == {0, 2, 3}


def test_without_a_home(monkeypatch: pytest.MonkeyPatch, code: Path) -> None:
    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("UNETPP_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert call(machine_code("facts", lambda: answer(9))) == 9
    assert not code.exists()


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, code: Path, tmp_path: Path, place: str) -> None:
    """Root may write to every folder, but not below a file or to /proc."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "file" if place == "file" else "/proc/self"))
    assert call(machine_code("facts", lambda: answer(9))) == 9
    assert (tmp_path / "file").read_text() == "no folder" and not code.exists()


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, code: Path, small_disk: Callable[[int], Path]) -> None:
    """No part of a file is left on it."""
    disk = small_disk(256)
    (disk / "code").mkdir()
    monkeypatch.setenv("UNETPP_HOME", str(disk))
    with (disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)
    os.truncate(disk / "filling", (disk / "filling").stat().st_size - 5000)  # for a folder, and not for all of the code
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: write(self, content * 100))
    assert call(machine_code("facts", lambda: answer(9))) == 9
    assert not list((disk / "code").iterdir())


def test_two_processes_at_once(code: Path) -> None:
    """Both begin with no code and find the other's, or their own."""
    script = textwrap.dedent("""
        import sys
        from tests.unetpp.native.test_build import answer, call
        from unetpp.native.build import machine_code
        print("ready", flush=True)
        sys.stdin.readline()
        print(sum(call(machine_code(str(n), lambda n=n: answer(n))) for n in range(5)), flush=True)
    """)
    path = os.pathsep.join(str(ROOT / part) for part in (".", "workflows", "kernels"))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["10", "10"]
    assert sorted(path.suffix for path in code.iterdir()) == [".o"] * 5


def test_code_for_another_process_needs_no_compiler(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process has kept runs in the next."""
    machine_code("facts", lambda: answer(11))
    script = textwrap.dedent("""
        from unetpp.native import build
        from tests.unetpp.native.test_build import call, never
        build._compiled = None
        print(call(build.machine_code("facts", never)))
    """)
    path = os.pathsep.join(str(ROOT / part) for part in (".", "workflows", "kernels"))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "11\n", done.stderr
