"""Starts one of our modules as a process that ends with this one; knows nothing of what the two say to each other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_LOOKS_EVERY_S = 0.5


def start(module: str, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """Run `python -m module *words PARENT`, where PARENT is what the module gives to `end_with`.

    It finds modules where this process does, in the folder of the call last of all, whose files could stand in for
    others. It is in a group of its own: Ctrl-C is for this process, which then ends the other.

    Args:
        pipes: of `subprocess.Popen`.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: it does not start.
    """
    paths = [path for path in sys.path if path and isinstance(path, str)]  # Python passes over what is no text, too
    if "" in sys.path:
        with suppress(OSError):  # it is gone
            paths.append(str(Path.cwd()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", "-m", module, *words, str(os.getpid())]
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def end_with(parent: str) -> None:
    """Let this process end soon after the one that started it has, however that came."""

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(_LOOKS_EVERY_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
