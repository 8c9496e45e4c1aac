"""Which modules a started process finds, and what it is told; how it ends is tested where processes are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetpp import child


def test_a_process_finds_our_modules_first_and_those_of_the_folder_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not the json of Python')")
    (tmp_path / "said.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *filter(None, sys.path), Path("no text")])
    with child.start("said", "word", stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=60)
    assert said.decode().strip() == f'["word", "{os.getpid()}"]'
