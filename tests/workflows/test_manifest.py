"""Manifests: tables and STAC items name images with what is their own, and faults are told by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from unetpp.errors import DataError
from unetpp_workflows.config import RunConfig
from unetpp_workflows.inputs import assign_folders, expand
from unetpp_workflows.manifest import Entry, is_manifest, read_manifest
from unetpp_workflows.pipeline import segment

ROWS = [
    {"uri": "a/one.tif", "name": "First image", "spacing": "0.25um", "mask": "m.png", "patient": "7"},
    {"uri": "s3://bucket/two.svs", "name": "", "spacing": "", "mask": "", "patient": "8"},
]
ENTRIES = [("a/one.tif", "First image", "0.25um", "m.png"), ("s3://bucket/two.svs", "", None, None)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_name_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert is_manifest(str(path))
    placed = [
        Entry(u if ":" in u else str(tmp_path / u), n, s, str(tmp_path / m) if m else None) for u, n, s, m in ENTRIES
    ]
    assert read_manifest(path) == placed
    assert expand([path, path]) == (placed, {})
    first, second = assign_folders(placed, tmp_path / "out")
    assert (first.name, first.spacing, first.mask) == ("First_image", "0.25um", str(tmp_path / "m.png"))
    assert (second.name, second.spacing, second.mask) == ("two", None, None)


@pytest.mark.parametrize(
    "text",
    [
        'uri, name, spacing, mask, region\na.tif, x, 1m, m.png, "1,2,3,4"\n',
        'Image,Name,SPACING,Mask,Region\na.tif,x,1m,m.png,"1,2,3,4"\n',
        'uri ,name,spacing ,mask,region\na.tif,x,1m,m.png,"1,2,3,4"\n',
    ],
)
def test_blanks_and_capitals_hide_no_column(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    expected = Entry(str(tmp_path / "a.tif"), "x", "1m", str(tmp_path / "m.png"), "1,2,3,4")
    assert read_manifest(str(tmp_path / "list.csv")) == [expected]


def test_missing_numbers_of_parquet_are_missing(tmp_path: Path) -> None:
    """As programs write them that know no missing numbers."""
    nothing = pyarrow.array([float("nan")] * 2)
    columns = {"uri": ["a.tif", "b.tif"], **dict.fromkeys(("name", "spacing", "mask", "region"), nothing)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    assert read_manifest(str(tmp_path / "list.parquet")) == [Entry(str(tmp_path / name)) for name in columns["uri"]]


def test_the_home_folder_is_that_of_a_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "list.csv").write_text("uri,mask\n~/a.tif,~/m.png\n~scan.tif,\n")
    first, second = tmp_path / "home/a.tif", tmp_path / "~scan.tif"
    expected = [Entry(str(first), mask=str(tmp_path / "home/m.png")), Entry(str(second))]
    assert expand([tmp_path / "list.csv"]) == (expected, {})
    second.touch()
    monkeypatch.chdir(tmp_path)
    assert expand(["~scan.tif"]) == expand(["."]) == ([Entry("~scan.tif")], {})


def test_a_region_is_numbers_or_a_file_beside_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "field.geojson").write_text("{}")
    table = tmp_path / "list.csv"
    table.write_text('uri,region\na.tif,"1,2,3,4"\nb.tif,field.geojson\nc.tif,\n')
    assert [entry.region for entry in read_manifest(table)] == ["1,2,3,4", str(tmp_path / "field.geojson"), None]
    assert next(source.region for source in assign_folders(read_manifest(table), tmp_path / "out")) == "1,2,3,4"
    (tmp_path / "elsewhere").mkdir()
    for name in ("field.geojson", "elsewhere.gpkg"):
        (tmp_path / "elsewhere" / name).write_text("{}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [entry.region for entry in read_manifest(table)][1] == str(tmp_path / "field.geojson")
    table.write_text("uri,region\na.tif,elsewhere.gpkg\n")
    with pytest.raises(DataError, match=r"row 1: region .*elsewhere\.gpkg"):
        read_manifest(table)


def test_names_cannot_leave_the_output_folder(tmp_path: Path) -> None:
    entries = [Entry("x.tif", name) for name in ("../../etc", "/abs/path", "..", "a/b", "mlflow")]
    entries = [Entry(f"{index}.tif", entry.name) for index, entry in enumerate(entries)]
    for source in assign_folders(entries, tmp_path / "out"):
        assert source.folder.resolve().parent == (tmp_path / "out").resolve()
        assert source.name not in ("", ".", "..", "mlflow")


def stac(item: str, assets: dict[str, object]) -> dict[str, object]:
    return {"type": "Feature", "stac_version": "1.0.0", "id": item, "assets": assets, "properties": {}}


def test_stac_items_name_their_image(tmp_path: Path) -> None:
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    first = stac("S2A", {"thumb": {"href": "t.png", "type": "image/png"},
                         "visual": {"href": "./v.tif", "type": cog, "roles": ["data"]},
                         "meta": {"href": "m.xml", "type": "text/xml"}})  # fmt: skip
    second = stac("L8", {"red": {"href": "https://host/r.tif", "type": cog}})
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [first, second]}))
    assert read_manifest(path) == [Entry(str(tmp_path / "./v.tif"), "S2A"), Entry("https://host/r.tif", "L8")]
    path.write_text(json.dumps(second))
    assert read_manifest(path) == [Entry("https://host/r.tif", "L8")]


def test_rows_of_one_image_are_equal_or_an_error(tmp_path: Path) -> None:
    table, scene = tmp_path / "list.csv", str(tmp_path / "a/x.tif")
    table.write_text("uri,name,spacing\na/x.tif,north,1m\na/x.tif,north,1m\nb.tif,,\nb.tif,,\n")
    assert expand([table]) == ([Entry(scene, "north", "1m"), Entry(str(tmp_path / "b.tif"))], {})
    for second in ("a/x.tif,south,1m", "a/../a/x.tif,south,1m", "a/x.tif,south,2m"):
        table.write_text(f"uri,name,spacing\nb.tif,,\na/x.tif,north,1m\n{second}\n")
        entries, faults = expand([table])
        assert entries == [] and list(faults) == [str(table)]
        assert "a/x.tif is listed twice, as 'north' and as 'south'" in faults[str(table)]
    (tmp_path / "one.csv").write_text("uri,spacing\nc.tif,1m,\n")  # a comma too many says nothing
    entries, faults = expand([tmp_path / "c.tif", tmp_path / "one.csv", tmp_path / "d.tif"])
    assert [Path(entry.uri).name for entry in entries] == ["c.tif", "d.tif"]
    assert "c.tif is listed twice, without a name and without a name" in faults[str(tmp_path / "one.csv")]


def test_one_bad_row_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.bands.toml").touch()
    (tmp_path / "list.csv").write_text("uri\na.tif\nbad.bands.toml\nb.tif\n")
    entries, faults = expand([tmp_path / "list.csv"])
    assert [Path(entry.uri).name for entry in entries] == ["a.tif", "b.tif"]
    assert list(faults) == [str(tmp_path / "bad.bands.toml")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,name\nx.tif,a\n", "no column uri or image or path or href; it has file, name"),
        ("b.csv", 'uri\nx.tif\n""\n', "row 2: uri is empty"),
        ("c.csv", "uri,spacing\nx.tif,7\n", "row 1: .*7"),
        ("m.csv", "uri,region\nx.tif,1,2,3,4\n", "row 1: more values than columns"),
        ("n.csv", "uri,mask,mask\nx.tif,m.png,\n", "the column 'mask' twice"),
        ("o.csv", "uri,mask,Mask\nx.tif,m.png,\n", "one column twice: uri, mask, Mask"),
        ("d.csv", "uri,name\nx.tif,n\ny.tif,n\n", "name 'n' twice"),
        ("e.csv", "uri\n", "no rows"),
        ("f.parquet", "not parquet", "not a readable table"),
        ("g.json", "{]", "not a readable STAC document"),
        ("h.geojson", '{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "no STAC item"),
        (
            "k.json",
            json.dumps(
                stac("q", {b: {"href": f"{b}.tif", "type": "image/tiff", "roles": ["data"]} for b in ("b2", "b3")})
            ),
            r"'q' has several images \(b2, b3\); say which bands make one in a .bands.toml with items = 'k.json'",
        ),
        ("l.json", json.dumps({"type": "FeatureCollection", "features": [stac("q", {})] * 2}), "the item 'q' twice"),
        ("i.json", json.dumps(stac("q", {"m": {"href": "m.xml", "type": "text/xml"}})), "'q' has no image"),
    ],
)
def test_faults_are_one_line_that_names_the_row(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_manifest_runs_and_each_image_keeps_its_own_settings(
    tmp_path: Path, ink_package_with_spacing: Path, blots: Callable[..., Path]
) -> None:
    """Two images without spacing, given one each: the coarser one is resampled; run again, both are reused."""
    blots("one.png"), blots("two.png")
    path = tmp_path / "in/list.csv"
    path.write_text("uri,name,spacing\none.png,fine,0.5um\ntwo.png,coarse,1um\nthree.png,gone,1um\n")
    config = RunConfig.model_validate({"tracking": {"enabled": False}})
    summary = segment([path], ink_package_with_spacing, tmp_path / "out", config=config)
    found = {image.name: image for image in summary.images}
    assert {name: image.status for name, image in found.items()} == {"fine": "done", "coarse": "done", "gone": "failed"}
    grids = {name: found[name].record.plan for name in ("fine", "coarse")}  # type: ignore[union-attr]
    assert (grids["fine"]["width"], grids["coarse"]["width"]) == (128, 256)
    again = segment([path], ink_package_with_spacing, tmp_path / "out", config=config)
    assert [image.reused for image in again.images] == [True, True, False]
    path.write_text("uri,name,spacing\none.png,fine,0.5um\ntwo.png,coarse,2um\n")
    changed = segment([path], ink_package_with_spacing, tmp_path / "out", config=config)
    assert [image.reused for image in changed.images] == [True, False]
