"""`unetpp verify` on a training store: whole as written, and every damaged patch by its image and place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr
from typer.testing import CliRunner

from unetpp_workflows.cli import app
from unetpp_workflows.prepare.build import prepare
from unetpp_workflows.prepare.dataset import Dataset

GLOBS: dict[str, Any] = {
    "images": "images/*.png",
    "labels": "masks/{stem}.png",
    "group_pattern": "^([a-z]+)",
    "validation": ["v"],
}


def verify(store: Path) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["verify", str(store)])
    return ended.exit_code, " ".join(ended.output.split())


def test_a_store_is_whole_until_something_changes(
    described: Callable[..., Dataset], photos: Any, tmp_path: Path
) -> None:
    photos({"a1": (70, 100), "b1": (32, 32), "v1": (40, 90)})
    store = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr").store
    code, text = verify(store)
    assert code == 0 and text.endswith("patches, whole")
    labels: Any = zarr.open_group(store, mode="r+")["labels"]
    last = labels.shape[0] - 1
    changed = labels[last]
    changed[0, 0] ^= 1
    labels[last] = changed
    code, text = verify(store)
    assert code == 1 and f"patch {last} of v1 at" in text and "1 patch(es) damaged" in text


def test_a_flipped_bit_on_the_disk_is_found(described: Callable[..., Dataset], photos: Any, tmp_path: Path) -> None:
    photos({"a1": (70, 100), "v1": (40, 90)})
    store = prepare(described(**GLOBS), tmp_path, tmp_path / "s.zarr").store
    shard = next(file for file in sorted((store / "pixels/c").rglob("*")) if file.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    code, text = verify(store)
    assert code == 1 and "patch " in text and "damaged" in text
