"""What of an archive counts as changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unetpp_workflows.inputs import Source
from unetpp_workflows.ledger import Ledger, stamp, sync


@pytest.mark.parametrize("name", ["x.png", "s2.bands.toml", "clip.mp4"])
def test_a_file_or_what_lies_in_it_changes_with_the_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"1")
    uri = f"{file}#17" if name != "x.png" else str(file)
    before = stamp(uri)
    assert before is not None and before == stamp(str(file))
    file.write_bytes(b"12")
    assert stamp(uri) not in (None, before)
    file.unlink()
    assert stamp(uri) is None


def test_a_night_sees_that_a_file_of_many_images_changed(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"1")
    sources = [Source(f"{clip}#{frame}", tmp_path / f"out/clip_{frame}") for frame in range(2)]
    ledger = Ledger()
    sync(ledger, sources, complete=True)
    for source in sources:
        ledger.settle(source.uri, "done", None, "")
    os.utime(clip, (1e9, 1e9))
    assert sync(ledger, sources, complete=True).changed == ("clip_0", "clip_1")
