"""The list of results is what lies on the disk, whenever it is asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unetpp_workflows.config import load_config
from unetpp_workflows.pipeline import segment
from unetpp_workflows.viewer.catalogue import Catalogue


def test_a_known_result_is_read_again_when_its_run_has_written_more(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    config, image = load_config(sets=["tracking.enabled=false"]), tmp_path / "out" / "a"
    segment([blots("a.png")], ink_package, tmp_path / "out", config=config)
    (image / "record.json").rename(tmp_path / "record.json")
    catalogue = Catalogue([tmp_path / "out"])
    (running,) = catalogue.results()
    assert catalogue.result(running.id).entry()["status"] == "running or interrupted"
    (tmp_path / "record.json").rename(image / "record.json")
    done = catalogue.result(running.id)
    assert done.entry()["status"] == "done" and done.stamp != running.stamp
    assert catalogue.result(running.id) is done
    (image / "record.json").write_text('{"name": "a", "sta')
    (damaged,) = catalogue.results()
    assert damaged.entry()["status"] == "damaged" and not damaged.finished and damaged.details()["height"] == 96
    shutil.rmtree(image)
    with pytest.raises(LookupError):
        catalogue.result(running.id)
