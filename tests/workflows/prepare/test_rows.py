"""Which images a data set has, and their splits: by column, by group, by share, inside one group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from unetpp.errors import DataError, UnetppError
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.prepare.rows import _unique_names, list_rows
from unetpp_workflows.prepare.splits import part_box, split_by_share


def table(folder: Path, text: str, *, name: str = "t.csv") -> None:
    for row in text.splitlines()[1:]:
        for cell in row.split(",")[:2]:
            (folder / cell).touch()
    (folder / name).write_text(text)


def test_a_table_lists_images_with_their_splits(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,group,split\nb.png,b1.png,p1,train\na.png,a1.png,p2,val\n")
    rows = list_rows(described(table="t.csv").data, tmp_path)
    assert [(row.name, row.group, row.stratum, row.split) for row in rows] == [
        ("a", "p2", "p2", "val"),
        ("b", "p1", "p1", "train"),
    ]
    assert rows[0].labels == (str(tmp_path / "a1.png"),)


def test_items_and_frames_are_images_of_a_file(described: Callable[..., Dataset], tmp_path: Path) -> None:
    for name in ("s2.bands.toml", "clip.mp4", "l.png"):
        (tmp_path / name).touch()
    images = ("s2.bands.toml#S2A_31", "s2.bands.toml#S2B_32", "clip.mp4#7")
    (tmp_path / "t.csv").write_text("image,labels,split\n" + "".join(f"{image},l.png,train\n" for image in images))
    rows = list_rows(described(table="t.csv").data, tmp_path)
    assert {row.name: row.image for row in rows} == {
        "s2_S2A_31": f"{tmp_path}/s2.bands.toml#S2A_31",
        "s2_S2B_32": f"{tmp_path}/s2.bands.toml#S2B_32",
        "clip_7": f"{tmp_path}/clip.mp4#7",
    }
    assert rows[0].files()[0] == f"{tmp_path}/clip.mp4"
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(DataError, match=r"clip.mp4 does not exist"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_parquet_reads_like_csv(described: Callable[..., Dataset], tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "l.png"):
        (tmp_path / name).touch()
    columns = {"image": ["a.png", "b.png"], "labels": ["l.png"] * 2, "group": [1, 2], "split": ["train", "val"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    rows = list_rows(described(table="t.parquet").data, tmp_path)
    assert [(row.name, row.group, row.split) for row in rows] == [("a", "1", "train"), ("b", "2", "val")]


def test_a_group_in_two_splits_is_named(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,group,split\na.png,a1.png,p7,train\nb.png,b1.png,p7,val\n")
    with pytest.raises(DataError, match=r"group 'p7' is in two splits, train and val"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_an_unknown_split_is_named(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,split\na.png,a1.png,trian\n")
    with pytest.raises(DataError, match="'trian'"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_a_missing_file_or_column_is_named(described: Callable[..., Dataset], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,labels,split\na.png,b.png,train\n")
    with pytest.raises(DataError, match=r"a\.png does not exist"):
        list_rows(described(table="t.csv").data, tmp_path)
    (tmp_path / "t.csv").write_text("picture,labels,split\na.png,b.png,train\n")
    with pytest.raises(DataError, match="no column 'image'"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_several_annotators_vote_or_stay_apart(described: Callable[..., Dataset], tmp_path: Path) -> None:
    text = (
        "image,labels,group,split,annotator\na.png,1.png,g,train,ann\na.png,2.png,g,train,bob\nb.png,3.png,h,val,ann\n"
    )
    table(tmp_path, text)
    together = list_rows(described(table="t.csv").data, tmp_path)
    assert [(row.name, len(row.labels), row.annotators) for row in together] == [
        ("a", 2, ("ann", "bob")),
        ("b", 1, ("ann",)),
    ]
    apart = list_rows(described(table="t.csv", annotators="separate").data, tmp_path)
    assert [(row.name, row.group) for row in apart] == [("a@ann", "g"), ("a@bob", "g"), ("b", "h")]


def test_a_majority_has_one_mask(described: Callable[..., Dataset], tmp_path: Path) -> None:
    for name in ("mask", "ignore"):
        rows = "a.png,1.png,g,train,ann,\na.png,2.png,g,train,bob,3.png\nb.png,3.png,h,val,ann,\n"
        table(tmp_path, f"image,labels,group,split,annotator,{name}\n{rows}")
        with pytest.raises(DataError, match="a has rows with different masks"):
            list_rows(described(table="t.csv").data, tmp_path)
        apart = list_rows(described(table="t.csv", annotators="separate").data, tmp_path)
        assert [bool(getattr(row, name)) for row in apart] == [False, True, False]


def test_two_rows_of_one_image_need_annotators(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,split\na.png,1.png,train\na.png,2.png,train\n")
    with pytest.raises(DataError, match="annotator"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_shares_keep_groups_whole_and_do_not_depend_on_their_order() -> None:
    groups = [f"g{i % 20}" for i in range(200)]
    found = split_by_share(groups, {"train": 0.7, "val": 0.2, "test": 0.1}, seed=3)
    assert found == split_by_share(groups[::-1], {"train": 0.7, "val": 0.2, "test": 0.1}, seed=3)
    assert Counter(found[group] for group in groups) == {"train": 140, "val": 40, "test": 20}
    assert found != split_by_share(groups, {"train": 0.7, "val": 0.2, "test": 0.1}, seed=4)


def test_nothing_to_split_by_is_an_error(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels\na.png,1.png\nb.png,2.png\n")
    with pytest.raises(DataError, match="no split"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_a_column_that_the_data_set_names_must_be_there(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,patient,fold\na.png,1.png,p1,train\nb.png,2.png,p1,val\n")
    with pytest.raises(DataError, match=r"no column 'patient_id' \(group\); it has image, labels, patient, fold"):
        list_rows(described(table="t.csv", split="fold", group="patient_id").data, tmp_path)
    shares = {"train": 0.5, "val": 0.5}
    with pytest.raises(DataError, match=r"no column 'flod' \(split\)"):
        list_rows(described(table="t.csv", split="flod", shares=shares).data, tmp_path)
    globs = {"images": "[ab].png", "labels": "{stem}.png"}
    with pytest.raises(DataError, match=r"no column 'patient_id' \(group\)"):
        list_rows(described(**globs, group="patient_id", table="t.csv", key="image", split="fold").data, tmp_path)
    # Without a table the group is in the file's name; where none is named, each image is one.
    assert [row.split for row in list_rows(described(**globs, validation=["b"]).data, tmp_path)] == ["train", "val"]
    assert [row.group for row in list_rows(described(table="t.csv", split="fold").data, tmp_path)] == ["a", "b"]


def test_no_patient_is_two_by_a_blank_or_an_empty_cell(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,patient,split\na.png,1.png,p1,train\nb.png,2.png, p1 ,val\n")
    with pytest.raises(DataError, match=r"group 'p1' is in two splits, train and val"):
        list_rows(described(table="t.csv", group="patient").data, tmp_path)
    table(tmp_path, "image,labels,patient,split\na.png,1.png,p1,train\nb.png,2.png, ,val\n")
    with pytest.raises(DataError, match=r"t\.csv: b has no 'patient' \(group\); fill the column"):
        list_rows(described(table="t.csv", group="patient").data, tmp_path)


def test_many_images_are_named_in_a_moment(described: Callable[..., Dataset], tmp_path: Path) -> None:
    names = _unique_names([f"{number // 2}/x{number}.png" for number in range(100_000)] + ["other/x7.png"])
    assert names["4/x8.png"] == "x8" and names["3/x7.png"] == "3/x7.png" and names["other/x7.png"] == "other/x7.png"


def test_named_groups_must_be_there(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,group\na.png,1.png,p1\nb.png,2.png,p2\nc.png,3.png,p3\n")
    with pytest.raises(DataError, match=r"'p-2', 'P3'; groups are 'p1', 'p2', 'p3'") as caught:
        list_rows(described(table="t.csv", validation=["p1", "p-2"], test=["P3"]).data, tmp_path)
    assert "\n" not in str(caught.value)
    # Names that are there by default need no group.
    for names in ({"validation": ["p1"]}, {"test": ["p1"]}):
        splits = [row.split for row in list_rows(described(table="t.csv", **names).data, tmp_path)]
        assert splits == ["val" if "validation" in names else "test", "train", "train"]


def test_two_rows_of_one_key_are_named(described: Callable[..., Dataset], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "b.png", "masks/a.png", "masks/b.png"):
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("id,split\na,train\nb,val\na,test\na,train\n")
    with pytest.raises(DataError, match=r"t\.csv has 3 rows with id 'a'"):
        list_rows(described(images="*.png", labels="masks/{stem}.png", table="t.csv").data, tmp_path)


@pytest.mark.parametrize("again", ["./images/a.png", "images/./a.png", "{root}/images/a.png"])
def test_another_spelling_of_a_path_is_no_other_image(
    again: str, described: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("images/a.png", "1.png", "2.png"):
        (tmp_path / name).touch()
    again = again.format(root=tmp_path)
    (tmp_path / "t.csv").write_text(f"image,labels,split\nimages/a.png,1.png,train\n{again},2.png,val\n")
    monkeypatch.chdir(tmp_path.parent)
    for root in (tmp_path, Path(tmp_path.name)):
        with pytest.raises(DataError, match="a has 2 rows"):
            list_rows(described(table="t.csv").data, root)


def test_one_group_needs_a_guard(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels\na.png,1.png\n")
    shares = {"train": 0.75, "val": 0.25}
    with pytest.raises(DataError, match="guard"):
        list_rows(described(table="t.csv", shares=shares).data, tmp_path)
    rows = list_rows(described(table="t.csv", shares=shares, guard=33).data, tmp_path)
    assert [(row.name, row.split) for row in rows] == [("a#train", "train"), ("a#val", "val")]
    train, val = (row.region(100, 400) for row in rows)
    assert val.x0 - train.x1 >= 33
    assert (train.x0, val.x1, train.height, val.height) == (0, 400, 100, 100)


def test_a_part_without_pixels_is_an_error() -> None:
    with pytest.raises(DataError, match="leaves nothing"):
        part_box((0.9, 1.0), 64, 100, 200)


def test_remote_images_are_told_from_files_and_their_labels_are_not_remote(
    described: Callable[..., Dataset], tmp_path: Path
) -> None:
    (tmp_path / "l.png").touch()
    (tmp_path / "t.csv").write_text("image,labels,split\ns3://b/one.tif,l.png,train\nhttps://h/x/two.tif,l.png,val\n")
    rows = {row.name: row for row in list_rows(described(table="t.csv").data, tmp_path)}
    assert {name: row.image for name, row in rows.items()} == {"one": "s3://b/one.tif", "two": "https://h/x/two.tif"}
    assert rows["one"].files() == (str(tmp_path / "l.png"),)
    assert rows["one"].below(tmp_path).image == "s3://b/one.tif"
    (tmp_path / "t.csv").write_text("image,labels,split\ns3://b/one.tif,s3://b/l.png,train\n")
    with pytest.raises(DataError, match=r"s3://b/l.png is not on this machine"):
        list_rows(described(table="t.csv").data, tmp_path)
    (tmp_path / "t.csv").write_text("image,labels,split\nhttps://me:secret@h/one.tif,l.png,train\n")
    with pytest.raises(UnetppError, match=r"https://h/one.tif: given with a password"):
        list_rows(described(table="t.csv").data, tmp_path)


def test_named_groups_and_shares_together_are_refused(described: Callable[..., Dataset], tmp_path: Path) -> None:
    table(tmp_path, "image,labels,group\na.png,a1.png,p1\nb.png,b1.png,p2\n")
    shares = {"train": 0.5, "val": 0.5}
    with pytest.raises(DataError, match="validation and shares are given"):
        list_rows(described(table="t.csv", shares=shares, validation=["p1"]).data, tmp_path)
    assert len(list_rows(described(table="t.csv", shares=shares, validation=[]).data, tmp_path)) == 2
