"""Lists a data set's images with their labels, groups and splits; knows tables and folders, opens no image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unetpp.errors import DataError
from unetpp.geometry import Box
from unetpp.io.bands import split_item
from unetpp.io.remote import check_uri, is_remote, local_name, shown
from unetpp.io.video import split_frame
from unetpp_workflows.prepare.dataset import SPLITS, DataSection
from unetpp_workflows.prepare.faults import some
from unetpp_workflows.prepare.splits import part_box, split_by_share, split_groups
from unetpp_workflows.tables import read_table


@dataclass(frozen=True)
class Row:
    """One image of the store.

    Attributes:
        name: unique in the set.
        image: path or URI of the image; labels: paths of its labels, one per annotator whose votes are counted.
        annotators: their names, in the order of `labels`; empty where the table names none.
        mask, ignore: paths of pixels that count and that do not; empty where there are none.
        group, stratum, split: see `DataSection`. The split is empty before `assign_splits`.
        part: where labels count along the image's longer side, from 0 to 1; the rest is another split's.
        guard: pixels between two parts.
    """

    name: str
    image: str
    labels: tuple[str, ...]
    group: str
    stratum: str
    split: str = ""
    annotators: tuple[str, ...] = ()
    mask: str = ""
    ignore: str = ""
    part: tuple[float, float] = (0.0, 1.0)
    guard: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        lists = {key: tuple(values[key]) for key in ("labels", "annotators", "part")}
        return cls(**{**values, **lists})

    def region(self, height: int, width: int) -> Box:
        """Return where labels count in an image of this size: the part, less half the guard at each cut."""
        return part_box(self.part, self.guard, height, width)

    def files(self) -> tuple[str, ...]:
        """Return the paths of all files of this machine; of a frame or an item the file that holds it."""
        named = (self.image, *self.labels, self.mask, self.ignore)
        return tuple(_parts(path)[0] for path in named if path and not is_remote(path))

    def below(self, root: Path) -> Row:
        """Return the row with its paths as they are told apart, see `path_below`; files are not opened by these."""
        labels = tuple(path_below(path, root) for path in self.labels)
        mask, ignore = (path and path_below(path, root) for path in (self.mask, self.ignore))
        return replace(self, image=path_below(self.image, root), labels=labels, mask=mask, ignore=ignore)


def path_below(path: str, root: Path) -> str:
    """Return a path relative to the data folder where it lies below it, however the folder is written; else as it is.

    Relative paths stay the same where the folder is moved or mounted elsewhere.
    """
    if is_remote(path):
        return path
    place = Path(path)
    if place.is_relative_to(root):
        return str(place.relative_to(root))
    for folder in (root.absolute(), root.resolve()):
        if place.is_relative_to(folder):
            return str(place.relative_to(folder))
    return path


def list_rows(data: DataSection, root: Path) -> list[Row]:
    """Return the images of a data set in the order of their names, with splits.

    Raises:
        DataError: no images, a missing file, row or column, two rows where there can be one, a group in two splits, or
            a named group that does not exist.
    """
    rows = _from_globs(data, root) if data.images else _from_table(data, root)
    rows = _annotated(sorted(rows, key=lambda row: (row.name, row.annotators)), data)
    for row in rows:
        for path in row.files():
            if not Path(path).exists():
                raise DataError(f"{row.name}: {path} does not exist; add it or remove the image")
    return assign_splits(rows, data)


def assign_splits(rows: Sequence[Row], data: DataSection) -> list[Row]:
    """Give every image a split: by its table, by named groups, by shares, or inside the one group there is.

    Raises:
        DataError: a group in two splits, an unknown split or group, nothing to split by, or an empty split.
    """
    if any(row.split for row in rows):
        if data.shares:
            raise DataError(f"the table has a column {data.split!r} and shares are given; remove one of them")
        found = split_groups([(row.group, row.split) for row in rows], data)
        return [replace(row, split=found[row.group]) for row in rows]
    if data.shares and (given := _given(data)):
        raise DataError(f"{' and '.join(given)} and shares are given; name the groups of a split or give shares")
    groups = [row.group for row in rows]
    named = dict.fromkeys(data.validation, "val") | dict.fromkeys(data.test, "test")
    if not data.shares and not set(named) & set(groups):
        raise DataError(
            f"no split: {len(set(groups))} group(s), and none is named in validation {list(data.validation)}; add a "
            f"column {data.split!r} to the table, name validation groups, or give shares"
        )
    if not data.shares:
        _need_groups(groups, data)
        return [replace(row, split=named.get(row.group, "train")) for row in rows]
    if len(set(groups)) > 1:
        by_share = split_by_share(groups, {str(split): share for split, share in data.shares.items()}, data.seed)
        return [replace(row, split=by_share[row.group]) for row in rows]
    if not data.guard:
        raise DataError(
            f"the only group is {groups[0]!r}, and a group is never split; label another one, or give guard (at least "
            "the network's halo, in pixels) to cut its images into parts with a band between them"
        )
    return _cut(rows, data)


def _need_groups(groups: Sequence[str], data: DataSection) -> None:
    """Raise `DataError` for names in validation or test that the data set gives and no group has."""
    unknown = [repr(name) for names in _given(data).values() for name in names if name not in groups]
    if unknown:
        there = some([repr(group) for group in sorted(set(groups))])
        raise DataError(
            f"validation or test names what is no group: {some(unknown)}; groups are {there}; correct the names"
        )


def _given(data: DataSection) -> dict[str, Sequence[str]]:
    """Return the groups that the data set itself names, by validation and test; defaults are not its own."""
    keys = (key for key in ("validation", "test") if key in data.model_fields_set)
    return {key: names for key in keys if (names := getattr(data, key))}


def _cut(rows: Sequence[Row], data: DataSection) -> list[Row]:
    """Make each image one image per split: a strip of it, across whichever side is longer."""
    cut, start = [], 0.0
    for split, share in sorted(data.shares.items(), key=lambda item: SPLITS.index(item[0])):
        stop = start + share
        last = stop > 1 - 1e-6
        part = (start, 1.0 if last else stop)
        cut += [replace(row, name=f"{row.name}#{split}", split=split, part=part, guard=data.guard) for row in rows]
        start = stop
    return sorted(cut, key=lambda row: row.name)


def _from_globs(data: DataSection, root: Path) -> list[Row]:
    paths = sorted(path for path in root.glob(data.images))
    if not paths:
        raise DataError(f"no images match {data.images!r} in {root}; name the data folder with --data")
    table: dict[str, list[dict[str, str]]] = {}
    if data.table is not None:
        for entry in _entries(data, root, data.key):
            table.setdefault(entry[data.key], []).append(entry)
    rows = []
    for path in paths:
        entry = _group_entry(path, data) if data.table is None else _table_entry(path, table, data)
        places = {name: str(root / getattr(data, name).format(stem=path.stem)) for name in ("mask", "ignore")
                  if getattr(data, name)}  # fmt: skip
        labels = str(root / data.labels.format(stem=path.stem))
        rows.append(_row(path.stem, str(path), labels, entry, data, places))
    return rows


def _group_entry(path: Path, data: DataSection) -> dict[str, str]:
    """Return what a table would say of an image: its group, by its name."""
    found = re.search(data.group_pattern, path.stem)
    if found is None:
        raise DataError(f"{path.name} does not match group_pattern {data.group_pattern!r}; correct the pattern")
    return {data.group: found[1] if found.re.groups else found[0]}


def _table_entry(path: Path, table: Mapping[str, list[dict[str, str]]], data: DataSection) -> dict[str, str]:
    found = table.get(path.stem, [])
    if not found:
        raise DataError(f"{data.table} has no row for {path.name}; add it or remove the image")
    if len(found) > 1:
        raise DataError(f"{data.table} has {len(found)} rows with {data.key} {path.stem!r}; keep the right one")
    return found[0]


def _from_table(data: DataSection, root: Path) -> list[Row]:
    entries = _entries(data, root, "image", "labels")
    # One image may be written in several ways; told apart by them, it could be in two splits.
    images = [_image_path(entry["image"], root) for entry in entries]
    spelled = [path_below(image, root) for image in images]
    names = _unique_names(spelled)
    rows = []
    for entry, image, known in zip(entries, images, spelled, strict=True):
        if not entry["labels"]:
            raise DataError(f"{data.table}: {entry['image']} has no labels; fill the column or remove the row")
        beside = {name: entry[name] for name in ("labels", "mask", "ignore") if entry.get(name)}
        if remote := [shown(place) for place in beside.values() if is_remote(place)]:
            raise DataError(f"{data.table}: {remote[0]} is not on this machine, and labels and masks must be; copy it")
        places = {name: str(root / local_name(place)) for name, place in beside.items()}
        labels = places.pop("labels")
        if entry.get("annotator"):
            places["annotator"] = entry["annotator"]
        rows.append(_row(names[known], image, labels, entry, data, places))
    return rows


def _image_path(written: str, root: Path) -> str:
    """Return where an image lies that a table names: a URI as it is, a path from the data folder."""
    if is_remote(written):
        check_uri(written)
        return written
    return str(root / local_name(written))


def _row(
    name: str, image: str, labels: str, entry: Mapping[str, str], data: DataSection, places: Mapping[str, str]
) -> Row:
    group = entry.get(data.group) or name
    if data.table and "group" in data.model_fields_set and not entry.get(data.group):
        # A group of its own, the image could be in another split than others of the same patient or scene.
        raise DataError(f"{data.table}: {name} has no {data.group!r} (group); fill the column")
    if data.stratum and data.stratum not in entry:
        raise DataError(f"{data.table} has no column {data.stratum!r} (stratum); it has {', '.join(entry)}")
    return Row(
        name=name,
        image=image,
        labels=(labels,),
        group=group,
        stratum=entry[data.stratum] if data.stratum else group,
        split=entry.get(data.split, "") if data.table else "",
        annotators=(places["annotator"],) if "annotator" in places else (),
        mask=places.get("mask", ""),
        ignore=places.get("ignore", ""),
    )


def _annotated(rows: Sequence[Row], data: DataSection) -> list[Row]:
    """Join the rows of one image, or name them apart; raises `DataError` where they cannot be told apart."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    result = []
    for name, same in by_name.items():
        if len(same) == 1:
            result += same
            continue
        who = [annotator for row in same for annotator in row.annotators]
        if len(set(who)) != len(same):
            raise DataError(f"{name} has {len(same)} rows; name each one's author in a column annotator, or remove one")
        if len({(row.group, row.split, row.stratum) for row in same}) > 1:
            raise DataError(f"{name} has rows with different groups or splits; an image belongs to one of each")
        if data.annotators == "separate":
            result += [replace(row, name=f"{name}@{row.annotators[0]}") for row in same]
        else:
            if data.instances:
                raise DataError(
                    f"{name} has {len(same)} annotators, and objects have no majority; set annotators = 'separate'"
                )
            if len({(row.mask, row.ignore) for row in same}) > 1:
                raise DataError(
                    f"{name} has rows with different masks or ignored parts, and a majority is taken in one; give all "
                    "rows the same, or set annotators = 'separate'"
                )
            result.append(replace(same[0], labels=tuple(row.labels[0] for row in same), annotators=tuple(who)))
    return result


def _unique_names(images: Sequence[str]) -> dict[str, str]:
    """Return a name per path: its stem, or its whole path where stems are not unique."""
    paths = list(dict.fromkeys(images))
    stems = [_parts(path)[1] or Path(path).stem for path in paths]
    times = Counter(stems)
    return {path: stem if times[stem] == 1 else path for path, stem in zip(paths, stems, strict=True)}


def _parts(image: str) -> tuple[str, str]:
    """Return the file of an image and its name in it: of CLIP.mp4#7, LIST.bands.toml#ID; else "" for the name."""
    found = split_frame(image) or split_item(image)
    return (image, "") if found is None else (str(found[0]), f"{found[0].name.partition('.')[0]}_{found[1]}")


def _entries(data: DataSection, root: Path, *columns: str) -> list[dict[str, str]]:
    """Return the table's rows; raises `DataError` where it lacks one of the columns, or one that the data set names."""
    assert data.table is not None
    entries = read_table(root / data.table)
    needed = dict.fromkeys(columns, "")
    # Without these columns images are split in another way, which a slip of the pen must not do.
    needed |= {getattr(data, key): f" ({key})" for key in ("split", "group") if key in data.model_fields_set}
    for column, setting in needed.items():
        if column and column not in entries[0]:
            raise DataError(f"{data.table} has no column {column!r}{setting}; it has {', '.join(entries[0])}")
    return entries
