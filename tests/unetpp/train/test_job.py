"""An exported training that is none is named; that one runs is tested where it is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetpp.errors import ConfigError
from unetpp.train.job import ExportedTraining


def test_what_is_no_exported_training_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"has no training\.json; write it with `unetpp train RECIPE --export`"):
            ExportedTraining.load(path)
