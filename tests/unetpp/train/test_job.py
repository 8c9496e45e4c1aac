"""An exported training that is none is named; that one runs is tested where it is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetpp.errors import ConfigError
from unetpp.train.__main__ import main
from unetpp.train.job import ExportedTraining


def test_what_is_no_exported_training_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"has no training\.json; write it with `unetpp train RECIPE --export`"):
            ExportedTraining.load(path)


@pytest.mark.parametrize("minutes", ["nan", "0", "-1"])
def test_a_time_that_would_never_be_up_or_is_up_already_is_refused(
    minutes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["unetpp.train", str(tmp_path), "--minutes", minutes])
    assert main() == 2
    assert capsys.readouterr().err == f"error: --minutes {minutes}: give a number above 0\n"
