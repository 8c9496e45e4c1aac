"""Finds the files of `cluster/` and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = sorted(
    file for file in CLUSTER.rglob("*") if file.is_file() and "secrets" not in file.relative_to(CLUSTER).parent.parts
)


def commands(file: Path, program: str) -> list[list[str]]:
    """Return the arguments of every call of a program in a file; shell variables are replaced by 1."""
    calls = re.compile(rf"(?<![\w.=:-])(?<!executor )(?<! -n )(?<!COPY ){program} +(?=[a-z-])([^|;&()`]*)")
    lines = [_plain(line) for text in _texts(file) for line in text.splitlines()]
    return [shlex.split(re.sub(r"\s\d?[<>].*", "", match[1])) for line in lines for match in calls.finditer(line)]


def _plain(line: str) -> str:
    return re.sub(r"\$+\(\(.*?\)\)|\$+\([^()]*\)|\$+\{[^}]*\}|\$+\w+", "1", line)


def _texts(file: Path) -> Iterator[str]:
    """Return the parts of a file that may hold commands, one command per line, without comments."""
    text = file.read_text(encoding="utf-8")
    if file.suffix in (".yaml", ".yml"):
        for document in yaml.safe_load_all(text):
            yield from _strings(document)
    elif file.suffix == ".md":
        yield from (_code(block) for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    else:
        yield _code(text)


def _code(text: str) -> str:
    joined = re.sub(r"\\\n\s*", " ", text)
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in joined.splitlines())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield _code(value)
    elif isinstance(value, dict):
        # A container's entrypoint and its arguments are one command line.
        parts = [value.get(key) for key in ("entrypoint", "command", "args")]
        lists = [part for part in parts if isinstance(part, list) and all(isinstance(item, str) for item in part)]
        if lists:
            whole = [item for part in lists for item in part]
            yield from ([_code(whole[-1])] if "-c" in whole else [shlex.join(whole)])
        for key, item in value.items():
            if not (lists and key in ("entrypoint", "command", "args") and isinstance(item, list)):
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
