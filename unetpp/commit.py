"""Says which shards of an output are finished and whole; knows records, sizes and hashes, not what labels mean.

A record is written after its shard's data is on the disk, in one rename. A shard is done when its record is valid, has
the job's key, and the object has the recorded size: a power cut may leave an object empty or missing, and Zarr would
then read fill values without an error. Bytes that changed in place are found by `verify`, which hashes every object.

    commits/<row>.<col>.json
    commits/journal/<host>-<process>.jsonl      every commit and every revocation, in the order a process made them
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unetpp.durable import file_sha256, output_errors, sync, write_file
from unetpp.levels import Levels
from unetpp.store import LabelStore
from unetpp.tiling import Shard

COMMITS, JOURNAL = "commits", "journal"
_LONGEST_RECORD = 2**20
_decode = json.JSONDecoder().decode
STAGES = ("read", "compute", "write")


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """One finished shard.

    Attributes:
        shard: "row.col".
        key: key of the job that made it.
        sha256: hash of the shard object (hex); None where no pixel is valid, and then there is no object.
        size: bytes of the shard object.
        valid_px: output pixels that are not 255.
        counts: pixels per class value, every class of the model in it.
        attempt: 1 for the first try.
        finished: UTC time, ISO 8601.
        seconds: of the stages "read", "compute" and "write", summed over the threads that made the shard.
        maps: folder of each map beside the labels -> sha256 and size of its object; empty where there is no object.
    """

    shard: str
    key: str
    sha256: str | None
    size: int
    valid_px: int
    counts: dict[int, int]
    attempt: int = 1
    finished: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CommitRecord:
        """Build from JSON values; raises `TypeError`, `ValueError` or `KeyError` when they are not a record."""
        if not _REQUIRED <= values.keys() <= _FIELDS:
            raise ValueError("a commit record lacks fields or has unknown ones")
        # A frozen class sets its fields one by one: a quarter of a check's time, and a driver checks ten million.
        record = object.__new__(cls)
        counts = {int(value): int(px) for value, px in values["counts"].items()}
        vars(record).update(_OPTIONAL, **{**values, "counts": counts})
        if record.maps and not all({"sha256", "size"} <= set(entry) for entry in record.maps.values()):
            raise ValueError("a map of a commit record has no hash or size")
        if not (isinstance(record.size, int) and isinstance(record.key, str) and isinstance(record.shard, str)):
            raise ValueError("fields of a commit record have the wrong type")
        return record


_REQUIRED = {info.name for info in fields(CommitRecord) if info.name not in ("attempt", "finished", "seconds", "maps")}
_OPTIONAL: Mapping[str, Any] = {"attempt": 1, "finished": "", "seconds": {}, "maps": {}}
_FIELDS = _REQUIRED | _OPTIONAL.keys()


def limiting_stage(seconds: Mapping[str, float]) -> str | None:
    """Name the stage that decides a run's speed, None where none took time.

    Every place to compute has two shards, one of which is read or written while the other computes: reading and writing
    cost nothing as long as they take no longer than computing.

    Args:
        seconds: wall time of "read", "compute" and "write", summed over shards.
    """
    read, compute, write = (seconds.get(stage, 0.0) for stage in STAGES)
    if read + compute + write <= 0:
        return None
    return "compute" if compute >= read + write else "read" if read >= write else "write"


def record_path(store: LabelStore, shard: Shard) -> Path:
    return store.folder / COMMITS / f"{shard.id}.json"


def write(store: LabelStore, record: CommitRecord) -> None:
    """Store a record; the shard's data must already be on the disk. Raises `OutputError`."""
    folder = store.folder / COMMITS
    with output_errors(folder):
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            sync(store.folder)
    write_file(folder / f"{record.shard}.json", json.dumps(record.to_json()).encode())
    _note(store, "committed", record.shard, record.key)


def listed(store: LabelStore) -> frozenset[str]:
    """Return the ids of the shards that have a record file, valid or not.

    One listing instead of one failing open per shard: on network storage each of those is a round trip.
    """
    try:
        names = os.listdir(store.folder / COMMITS)  # noqa: PTH208 (a path object for each is dear)
    except FileNotFoundError:
        return frozenset()
    return frozenset(name.removesuffix(".json") for name in names)


def read(store: LabelStore, shard: Shard) -> CommitRecord | None:
    """Return a shard's record, or None where there is none that can be read."""
    try:
        # Text instead of pathlib here and in `_objects`: a driver looks after ten million records.
        record = CommitRecord.from_json(_decode(_content(f"{store.folder}/{COMMITS}/{shard.id}.json")))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if record.shard == shard.id else None


def _content(path: str) -> str:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, _LONGEST_RECORD).decode()
    finally:
        os.close(file)


def revoke(store: LabelStore, shard: Shard) -> None:
    """Forget that a shard is done, so that the next run makes it again. Raises `OutputError`."""
    path = record_path(store, shard)
    found = read(store, shard)
    with output_errors(path):
        if path.exists():
            # Said first: killed between, a run would make the next commit look like a second one.
            # A record that does not read belongs to nobody knows which job; whosever it was, it is gone.
            _note(store, "revoked", shard.id, "" if found is None else found.key)
            path.unlink()


def is_committed(store: LabelStore, shard: Shard, key: str) -> bool:
    """Say whether this job finished the shard and its object still has the recorded size."""
    return committed_record(store, shard, key) is not None


def committed_record(store: LabelStore, shard: Shard, key: str) -> CommitRecord | None:
    """Return the record of a shard that `is_committed`, else None."""
    record = read(store, shard)
    return record if record is not None and _fault(store, shard, record, key) is None else None


def verify(store: LabelStore, key: str) -> dict[str, str]:
    """Hash every shard object; returns what is wrong by shard id ("row.col"), empty when all is well."""
    faults = {}
    for shard in store.plan.shards():
        record = read(store, shard)
        fault = "not finished: no valid commit record" if record is None else _fault(store, shard, record, key)
        if record is not None and fault is None:
            fault = next(_changes(store, shard, record), None)
        if fault is not None:
            faults[shard.id] = fault
    return faults


@dataclass(frozen=True)
class Audit:
    """What records and journals say together about the shards of one job.

    Attributes:
        shards: of the plan.
        once: shards with a record of this job and one commit in the journals since the last revocation.
        unwitnessed: finished shards without a journal line: their worker died between the record and the line.
        twice: shards that were committed again although they were finished -> by whom.
        lost: shards without a valid record -> why, and whether a journal says that they were finished once.
    """

    shards: int
    once: int
    unwitnessed: tuple[str, ...]
    twice: dict[str, str]
    lost: dict[str, str]


def audit(store: LabelStore, key: str) -> Audit:
    """Compare the records of a job with its journals; hashes nothing, see `verify`.

    Lines of several processes are put in the order of their clocks, so that the hosts' clocks must agree better than
    the time from a revocation to the next commit of the same shard.
    """
    writers: defaultdict[str, list[str]] = defaultdict(list)
    twice: dict[str, str] = {}
    for line in sorted(_journal(store), key=lambda line: int(line["time_ns"])):
        made = writers[str(line["shard"])]
        if line["event"] == "revoked":
            made.clear()
        elif line["key"] == key:
            made.append(str(line["by"]))
        if len(made) > 1:
            twice[str(line["shard"])] = ", then ".join(made)
    once, unwitnessed, lost = 0, [], {}
    shards = store.plan.shards()
    for shard in shards:
        record = read(store, shard)
        fault = "no valid commit record" if record is None else _fault(store, shard, record, key)
        if fault is not None:
            lost[shard.id] = f"{fault}; committed by {writers[shard.id][-1]}" if writers[shard.id] else fault
        elif not writers[shard.id]:
            unwitnessed.append(shard.id)
        else:
            once += shard.id not in twice
    return Audit(len(shards), once, tuple(unwitnessed), twice, lost)


def _note(store: LabelStore, event: str, shard: str, key: str) -> None:
    """Append a line to this process's journal; one write, so that threads do not mix. Raises `OutputError`."""
    by = f"{socket.gethostname()}-{os.getpid()}"
    line = {"time_ns": time.time_ns(), "event": event, "shard": shard, "key": key, "by": by}
    path = store.folder / COMMITS / JOURNAL / f"{by}.jsonl"
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())


def _journal(store: LabelStore) -> Iterator[dict[str, Any]]:
    """Yield the lines of all journals; a torn one, of a process killed in the middle, is left out."""
    for path in sorted((store.folder / COMMITS / JOURNAL).glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"time_ns", "event", "shard", "key", "by"} <= line.keys():
                yield line


def _fault(store: LabelStore, shard: Shard, record: CommitRecord, key: str) -> str | None:
    if record.key != key:
        return f"made by another job: key {record.key[:12]}, expected {key[:12]}"
    for name, path, sha256, expected in _objects(store, shard, record):
        try:
            size = os.stat(path).st_size  # noqa: PTH116
        except FileNotFoundError:
            if sha256 is not None:
                return f"{name} is missing"
            continue
        if sha256 is None:
            return f"{name} exists, but the record says that no pixel is valid"
        if size != expected:
            return f"{name} has {size} bytes, expected {expected}"
    return None


def _changes(store: LabelStore, shard: Shard, record: CommitRecord) -> Iterator[str]:
    for name, path, sha256, _ in _objects(store, shard, record):
        if sha256 is not None and (digest := file_sha256(Path(path))) != sha256:
            subject = "content" if name == "object" else f"content of {name}"
            yield f"{subject} changed: sha256 {digest}, expected {sha256}"


def _objects(store: LabelStore, shard: Shard, record: CommitRecord) -> Iterator[tuple[str, str, str | None, int]]:
    """Yield name, file, hash and size of everything that the record speaks of."""
    place = f"{store.folder}/{store.object_name(0, shard.row, shard.col)}"
    yield "object", place, record.sha256, record.size
    for name, entry in record.maps.items():
        place = f"{store.folder}/{Levels(store.folder, store.plan, name, 1).object_name(0, shard.row, shard.col)}"
        yield f"object of {name}", place, entry["sha256"], entry["size"]
