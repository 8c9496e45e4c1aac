"""Staged copies: whole, shared by processes, bounded, the longest unused gone first, none in use deleted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.object_store import ObjectStore
from unetpp.errors import ConfigError, ImageTooLargeError
from unetpp.io import staging
from unetpp.io.remote import RemoteObject, open_object
from unetpp.io.staging import stage


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PART_BYTES", 1000)
    monkeypatch.setenv("UNETPP_STAGING_GB", "0.00001")  # 10 kB


def _put(store: ObjectStore, folder: Path, name: str, size: int) -> tuple[RemoteObject, bytes]:
    content = np.random.default_rng(len(name) + size).bytes(size)
    (folder / name).write_bytes(content)
    return open_object(store.put(folder / name, f"staged/{name}")), content


def test_a_copy_is_whole_kept_and_shared(object_store: ObjectStore, tmp_path: Path) -> None:
    source, content = _put(object_store, tmp_path, "a.svs", 4500)
    object_store.proxy.misbehave("error", "cut", "short")
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: stage(source), range(4)))
    assert {copy.path for copy in copies} == {copies[0].path} and copies[0].path.suffix == ".svs"
    assert copies[0].path.read_bytes() == content
    assert len(object_store.proxy.requests) == 2 * 5, "each part came once, after one fault"
    assert stage(source).path == copies[0].path and len(object_store.proxy.requests) == 2 * 5


def test_the_longest_unused_makes_room_but_not_what_is_open(object_store: ObjectStore, tmp_path: Path) -> None:
    files = [_put(object_store, tmp_path, f"{i}.svs", 4000 + i)[0] for i in range(4)]
    first, second = stage(files[0]), stage(files[1])
    os.utime(first.path, (1, 1))
    os.utime(second.path, (2, 2))
    second.close()
    third = stage(files[2])
    assert first.path.exists() and third.path.exists() and not second.path.exists(), "the first is open"
    first.close()
    third.close()
    fourth = stage(files[3])
    assert fourth.path.exists() and third.path.exists() and not first.path.exists()


def test_what_others_put_into_the_folder_stays(object_store: ObjectStore, tmp_path: Path) -> None:
    files = [_put(object_store, tmp_path, f"{i}.svs", 6000 + i)[0] for i in range(2)]
    first = stage(files[0])
    folder = first.path.parent
    own = [folder / name for name in ("slide.svs", f"{'0a' * 16}.svs", f"{'0b' * 16}.part", "folder/slide.svs")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 9000)
        os.utime(path, (1, 1))
    (folder / ("0c" * 16)).mkdir()
    first.close()
    second = stage(files[1])
    assert second.path.exists() and not first.path.exists()
    assert all(path.stat().st_size == 9000 for path in own)


def test_a_changed_object_is_another_copy(object_store: ObjectStore, tmp_path: Path) -> None:
    before = stage(_put(object_store, tmp_path, "x.svs", 2000)[0])
    source, content = _put(object_store, tmp_path, "x.svs", 2001)
    after = stage(source)
    assert after.path != before.path and after.path.read_bytes() == content


def test_a_fetch_that_was_killed_starts_anew(object_store: ObjectStore, tmp_path: Path) -> None:
    source, content = _put(object_store, tmp_path, "k.svs", 3000)
    copy = stage(source)
    copy.close()
    copy.path.with_name(copy.path.name + ".part").write_bytes(content[:1234])
    copy.path.unlink()
    assert stage(source).path.read_bytes() == content
    assert not copy.path.with_name(copy.path.name + ".part").exists()


def test_too_large_and_bad_settings(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = _put(object_store, tmp_path, "big.svs", 20_000)
    with pytest.raises(ImageTooLargeError, match="raise UNETPP_STAGING_GB or copy the image here"):
        stage(source)
    monkeypatch.setenv("UNETPP_STAGING_GB", "much")
    with pytest.raises(ConfigError, match="UNETPP_STAGING_GB='much' is no number"):
        stage(source)
