"""Compiles LLVM functions for this CPU, and keeps the machine code in the user's folder; knows no network.

UNETPP_HOME/code/HASH.o    SHA-256 of the object file, then the object file

HASH is of all that the machine code depends on. A file appears whole or not at all, one that is damaged is made again,
and those that were not used for the longest time go. Like Numba's, they are as trusted as the folder they lie in.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from llvmlite import __version__ as llvmlite_version
from llvmlite import binding

from unetpp.errors import OutputError
from unetpp.home import home
from unetpp.native.emit import Code

_KEPT: Final = 64
"""Object files: 100 kB each."""
_lock = Lock()
_loaded: dict[str, Machine] = {}


class Machine:
    """Machine code in this process; it stays until the process ends."""

    def __init__(self, content: bytes) -> None:
        target = _target_machine()
        # An engine wants a module of its own, however empty.
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target)
        self._engine.add_object_file(binding.ObjectFileRef.from_data(content))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        return int(self._engine.get_function_address(name))


def machine_code(facts: str, write: Callable[[], Code]) -> Machine:
    """Return the functions that `write` gives, compiled before or now.

    Args:
        facts: all that `write` depends on, its own source code left out.
    """
    with _lock:
        _start_llvm()
        name = _name(facts)
        if name not in _loaded:
            content = _kept(name)
            if content is None:
                content = _compiled(write())
                _keep(name, content)
            _loaded[name] = Machine(content)
        return _loaded[name]


def _start_llvm() -> None:
    if not _loaded:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()


def _target_machine() -> Any:
    features = binding.get_host_cpu_features().flatten()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3, jit=True
    )


def _compiled(code: Code) -> bytes:
    code.module.triple = binding.get_default_triple()
    module = binding.parse_assembly(str(code.module))
    module.verify()
    target = _target_machine()
    # Vectors and unrolled steps are written as such: what LLVM would add of its own makes these loops slower.
    options = binding.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = binding.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    content: bytes = target.emit_object(module)
    return content


def _name(facts: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    cpu = binding.get_host_cpu_name() + binding.get_host_cpu_features().flatten()
    digest.update("\n".join((facts, cpu, llvmlite_version, str(binding.llvm_version_info))).encode())
    return digest.hexdigest()[:32]


def _folder() -> Path | None:
    try:
        return home() / "code"
    except OutputError:
        return None


def _kept(name: str) -> bytes | None:
    folder = _folder()
    if folder is None:
        return None
    path = folder / f"{name}.o"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content[:32] != hashlib.sha256(content[32:]).digest():
        return None
    with suppress(OSError):
        os.utime(path)
    return content[32:]


def _keep(name: str, content: bytes) -> None:
    """Keep an object file where that can be done; what is wrong with the folder costs the next process a second."""
    folder = _folder()
    if folder is None:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-", ignore_cleanup_errors=True) as part:
            (Path(part) / "code").write_bytes(hashlib.sha256(content).digest() + content)
            (Path(part) / "code").replace(folder / f"{name}.o")
        used = sorted(folder.glob("*.o"), key=lambda path: path.stat().st_mtime)
        for path in used[:-_KEPT]:
            path.unlink(missing_ok=True)
