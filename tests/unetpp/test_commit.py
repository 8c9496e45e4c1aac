"""Commit records: a shard counts as done only when its data is there, whole, and made by this job."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetpp import commit
from unetpp.commit import CommitRecord
from unetpp.durable import file_sha256
from unetpp.package import ClassInfo
from unetpp.store import LabelStore
from unetpp.tiling import Shard, make_plan

KEY = "a" * 64


class Grid:
    spacing = crs = transform = None
    step_y = step_x = 1.0


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    plan = make_plan(100, 120, halo=16, multiple=16, core=64)
    classes = (ClassInfo(value=0, name="background", color=(0, 0, 0)), ClassInfo(value=1, name="x", color=(1, 2, 3)))
    store = LabelStore.create(tmp_path, plan, Grid(), classes)  # type: ignore[arg-type]
    for shard in plan.shards()[:-1]:
        save(store, shard)
    last = CommitRecord(shard=plan.shards()[-1].id, key=KEY, sha256=None, size=0, valid_px=0, counts={0: 0, 1: 0})
    commit.write(store, last)
    return store


def save(store: LabelStore, shard: Shard) -> CommitRecord:
    labels = np.random.default_rng(shard.col).integers(0, 2, shard.box.shape, dtype=np.uint8)
    path = store.write_shard(shard, labels)
    counts = {0: int((labels == 0).sum()), 1: int((labels == 1).sum())}
    record = CommitRecord(
        shard=shard.id,
        key=KEY,
        sha256=file_sha256(path),
        size=path.stat().st_size,
        valid_px=labels.size,
        counts=counts,
        attempt=2,
        finished="2024-05-01T10:00:00+00:00",
        seconds={"read": 0.5},
    )
    commit.write(store, record)
    return record


def test_records_survive_the_disk(store: LabelStore) -> None:
    shard = store.plan.shards()[0]
    record = save(store, shard)
    assert commit.read(store, shard) == record
    assert commit.verify(store, KEY) == {}
    assert all(commit.is_committed(store, shard, KEY) for shard in store.plan.shards())


@pytest.mark.parametrize("fault", ["empty", "missing", "shorter", "longer"])
def test_an_object_of_another_size_is_not_done(store: LabelStore, fault: str) -> None:
    shard = store.plan.shards()[1]
    path = store.shard_object(shard)
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "shorter": content[:-1], "longer": content + b"0"}[fault])
    assert not commit.is_committed(store, shard, KEY)
    assert list(commit.verify(store, KEY)) == [shard.id]


def test_verify_finds_one_flipped_bit_and_names_every_bad_shard(store: LabelStore) -> None:
    first, second, third, _ = store.plan.shards()
    path = store.shard_object(first)
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    store.shard_object(third).unlink()
    faults = commit.verify(store, KEY)
    assert set(faults) == {first.id, third.id}
    assert "content changed" in faults[first.id] and faults[third.id] == "object is missing"
    assert commit.is_committed(store, first, KEY) and commit.is_committed(store, second, KEY)
    commit.revoke(store, first)
    assert not commit.is_committed(store, first, KEY)


def test_an_object_where_nothing_should_be_is_a_fault(store: LabelStore) -> None:
    last = store.plan.shards()[-1]
    store.write_shard(last, np.zeros(last.box.shape, np.uint8))
    assert not commit.is_committed(store, last, KEY)
    assert "no pixel is valid" in commit.verify(store, KEY)[last.id]


def test_a_record_of_another_job_or_shard_does_not_count(store: LabelStore) -> None:
    first, second = store.plan.shards()[:2]
    assert not commit.is_committed(store, first, "b" * 64)
    commit.record_path(store, second).write_bytes(commit.record_path(store, first).read_bytes())
    assert commit.read(store, second) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"shard": "0.0"}', b'{"counts": {"x": 1}}', b"\xff"])
def test_a_damaged_record_does_not_count(store: LabelStore, content: bytes) -> None:
    shard = store.plan.shards()[0]
    commit.record_path(store, shard).write_bytes(content)
    assert commit.read(store, shard) is None
    assert "no valid commit record" in commit.verify(store, KEY)[shard.id]


def test_a_record_with_a_wrong_type_does_not_count(store: LabelStore) -> None:
    shard = store.plan.shards()[0]
    record = commit.read(store, shard)
    assert record is not None
    commit.write(store, replace(record, size="big"))  # type: ignore[arg-type]
    assert commit.read(store, shard) is None


@pytest.mark.parametrize(
    ("read", "compute", "write", "limit"),
    [(1, 5, 1, "compute"), (3, 5, 2, "compute"), (4, 5, 2, "read"), (1, 2, 4, "write"), (0, 0, 0, None)],
)
def test_compute_limits_while_reading_and_writing_fit_beside_it(
    read: float, compute: float, write: float, limit: str | None
) -> None:
    assert commit.limiting_stage({"read": read, "compute": compute, "write": write}) == limit


def test_an_audit_tells_lost_shards_and_such_written_twice_from_rewritten_ones(store: LabelStore) -> None:
    first, second, third, last = (shard.id for shard in store.plan.shards())
    whole = commit.audit(store, KEY)
    assert whole == commit.Audit(shards=4, once=4, unwitnessed=(), twice={}, lost={})
    commit.revoke(store, store.plan.shards()[0])
    assert list(commit.audit(store, KEY).lost) == [first]
    save(store, store.plan.shards()[0])  # made anew, as after `verify --repair`
    assert commit.audit(store, KEY) == whole
    commit.record_path(store, store.plan.shards()[0]).write_bytes(b"{")  # a power cut tore it
    commit.revoke(store, store.plan.shards()[0])
    save(store, store.plan.shards()[0])
    assert commit.audit(store, KEY) == whole
    save(store, store.plan.shards()[1])
    assert list(commit.audit(store, KEY).twice) == [second] and commit.audit(store, KEY).once == 3
    commit.record_path(store, store.plan.shards()[2]).unlink()
    assert "committed by" in commit.audit(store, KEY).lost[third]
    journal = next((store.folder / "commits/journal").glob("*.jsonl"))
    journal.write_text(journal.read_text()[:-10])  # the last line is torn: the second commit of the second shard
    assert commit.audit(store, KEY).twice == {}
    journal.unlink()
    assert commit.audit(store, KEY).unwitnessed == (first, second, last)


def test_a_revocation_that_was_killed_does_not_make_the_next_commit_a_second_one(store: LabelStore) -> None:
    shard = store.plan.shards()[0]
    child = os.fork()
    if child == 0:
        files = [commit.record_path(store, shard).name, f"-{os.getpid()}.jsonl"]  # of both that it changes

        def kill_at_the_last(event: str, args: tuple[Any, ...]) -> None:
            if event == "os.remove" or (event == "open" and str(args[1]).startswith("a")):
                files[:] = [name for name in files if not str(args[0]).endswith(name)]
                if not files:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_at_the_last)
        commit.revoke(store, shard)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    commit.revoke(store, shard)
    save(store, shard)
    assert commit.audit(store, KEY).twice == {}
