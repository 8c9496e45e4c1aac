"""Says what was typed to start a benchmark, as results show it; knows options, not what they do."""

from __future__ import annotations

import shlex
import sys

_FOLDERS = ("--work", "--output")


def typed(script: str) -> str:
    """Return the command without the folders of this machine."""
    words = sys.argv[1:]
    for option in _FOLDERS:
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
    return shlex.join(["python", script, *words])
