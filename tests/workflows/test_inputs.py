"""Which images a call names and which folder each gets: order-free, stable over calls, never outside the output."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unetpp.durable import discard_folder
from unetpp.errors import OutputError
from unetpp_workflows import inputs
from unetpp_workflows.inputs import Source, identity, safe_name
from unetpp_workflows.manifest import Entry


def expand(items: Iterable[str | Path]) -> list[str]:
    entries, faults = inputs.expand(items)
    assert faults == {}
    return [entry.uri for entry in entries]


def faults(*items: str | Path) -> dict[str, str]:
    return inputs.expand(items)[1]


def assign_folders(uris: Iterable[str], output: Path) -> list[Source]:
    return inputs.assign_folders([Entry(uri) for uri in uris], output)


def _touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def _claim(folder: Path, uri: str) -> None:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"uri": uri}))


def test_folders_and_globs_become_their_images_once(tmp_path: Path) -> None:
    slide, scene = _touch(tmp_path / "a/slide.SVS"), _touch(tmp_path / "b/scene.tif")
    _touch(tmp_path / "a/notes.txt")
    _touch(tmp_path / "b/.hidden.tif")
    store = tmp_path / "b/cells.zarr"
    _touch(store / "zarr.json")
    _touch(store / "0/inside.tif")
    assert expand([tmp_path]) == [slide, str(store), scene]
    assert expand([f"{tmp_path}/*/*.tif", scene, "s3://bucket/x.svs"]) == [scene, "s3://bucket/x.svs"]


def test_results_among_the_images_are_not_images(tmp_path: Path) -> None:
    slide = _touch(tmp_path / "slide.svs")
    _claim(tmp_path / "out/slide", slide)
    _touch(tmp_path / "out/slide/classes.tif")
    _touch(tmp_path / "mlflow/mlflow.db")
    _touch(tmp_path / "mlflow/mlartifacts/1/picture.jpg")
    assert expand([tmp_path]) == [slide]


def test_a_name_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty, pattern = str(tmp_path / "empty"), f"{tmp_path}/*.svs"
    found = faults(empty, pattern, "")
    assert list(found) == [empty, pattern, ""] and "an input without a name" in found[""]
    assert "no image in this folder" in found[empty] and "nothing matches" in found[pattern]


def test_an_image_is_one_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = _touch(tmp_path / "archive/scene.png")
    monkeypatch.chdir(tmp_path / "archive")
    spellings = ["scene.png", scene, "./scene.png", "../archive/scene.png", f"file://{scene}", f"{tmp_path}//archive/"]
    assert expand(spellings) == ["scene.png"]
    assert expand(["s3://bucket/a//b/../x.svs", "s3://bucket/a/x.svs"]) == [
        "s3://bucket/a//b/../x.svs",
        "s3://bucket/a/x.svs",
    ]
    alone = {source.folder for spelling in spellings for source in assign_folders(expand([spelling]), tmp_path / "out")}
    assert alone == {tmp_path / "out/scene"}


def test_behind_a_link_two_dots_lead_to_another_image(tmp_path: Path) -> None:
    here, there = _touch(tmp_path / "scene.png"), _touch(tmp_path / "other/scene.png")
    (tmp_path / "other/deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other/deep")
    behind = f"{tmp_path}/link/../scene.png"
    assert expand([here, behind, there]) == [here, behind]
    assert identity(behind) == there


def test_links_to_folders_above_and_beside_list_each_folder_once(tmp_path: Path) -> None:
    first, second = _touch(tmp_path / "a/first.png"), _touch(tmp_path / "z/second.png")
    for link, target in (("a/up", ".."), ("0", "z"), ("z/up", "../a"), ("elsewhere", tmp_path.parent / "away")):
        (tmp_path / link).symlink_to(target)
    _touch(tmp_path.parent / "away/third.png")
    assert expand([tmp_path]) == [first, f"{tmp_path}/elsewhere/third.png", second]


def test_a_pattern_that_leads_through_a_link_above_itself_lists_each_image_once(tmp_path: Path) -> None:
    found = [_touch(tmp_path / name) for name in ("a/1.png", "a/2.png", "b.png")]
    (tmp_path / "a/up").symlink_to("..")
    assert expand([f"{tmp_path}/**/*.png"]) == found


@pytest.mark.timeout(20)  # two such links make 2^40 paths
def test_a_pattern_that_leads_through_two_links_above_themselves_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [_touch(tmp_path / name) for name in ("a/1.png", "a/c/2.png", "b.png")]
    for link in ("a/up", "a/c/top", "a/c/self"):
        (tmp_path / link).symlink_to(tmp_path if link != "a/c/self" else ".")
    for pattern in ("**/*.png", "**/**/*.png", "**"):
        assert expand([f"{tmp_path}/{pattern}"]) == found, pattern
    assert expand([f"{tmp_path}/**/a/**/*.png"]) == [*found[:2], f"{tmp_path}/a/up/b.png"], "below a are links upwards"
    assert expand([f"{tmp_path}/**/top/*.png"]) == [f"{tmp_path}/a/c/top/b.png"], "a link that is named keeps its name"
    monkeypatch.chdir(tmp_path)
    assert expand(["**/*.png"]) == ["a/1.png", "a/c/2.png", "b.png"]


def test_a_link_to_itself_fails_alone(tmp_path: Path) -> None:
    good = _touch(tmp_path / "good.png")
    (tmp_path / "loop").symlink_to("loop")
    entries, found = inputs.expand([tmp_path])
    assert [entry.uri for entry in entries] == [good]
    assert (
        list(found) == [str(tmp_path / "loop")] and "symbolic links; make it readable" in found[str(tmp_path / "loop")]
    )


def test_a_name_that_is_not_utf8_fails_alone(tmp_path: Path) -> None:
    good = _touch(tmp_path / "good.png")
    for name in (b"caf\xe9.png", b"\xe9t\xe9/1.png", b"\xe9t\xe9/2.png", b"notes\xe9.txt"):
        _touch(tmp_path / os.fsdecode(name))
    for item in (tmp_path, f"{tmp_path}/**/*.png"):
        entries, found = inputs.expand([item])
        assert [entry.uri for entry in entries] == [good]
        assert found == {
            str(tmp_path / name): f"{tmp_path / name}: the name is not UTF-8; rename it"
            for name in ("caf\\udce9.png", "\\udce9t\\udce9")
        }
    assert list(faults(tmp_path / os.fsdecode(b"caf\xe9.png"))) == [str(tmp_path / "caf\\udce9.png")]


@contextmanager
def _bound_by_modes() -> Iterator[Path]:
    """Give a folder of a user who may not read everything, as root may, and be that user in the block."""
    with tempfile.TemporaryDirectory() as folder:
        user = os.geteuid()
        if user == 0:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_what_may_not_be_read_fails_alone() -> None:
    with _bound_by_modes() as folder:
        good, below = _touch(folder / "a/good.png"), _touch(folder / "z/below.png")
        _touch(folder / "lost+found/x.png")
        _touch(folder / "a/slide.dcm")
        for closed in ("lost+found", "a/slide.dcm"):
            (folder / closed).chmod(0)
        entries, found = inputs.expand([folder, f"{folder}/lost+found"])
        assert [entry.uri for entry in entries] == [good, below]
        assert found == {
            f"{folder}/a": f"{folder}/a: cannot be read: {folder}/a/slide.dcm: Permission denied; "
            "make it readable for this user, or move it away",
            f"{folder}/lost+found": found[f"{folder}/lost+found"],
        }
        assert "lost+found: cannot be read" in found[f"{folder}/lost+found"]
        (folder / "lost+found").chmod(0o700)


def test_a_folder_that_a_pattern_may_not_read_fails_alone() -> None:
    with _bound_by_modes() as folder:
        good = _touch(folder / "a/good.png")
        _touch(folder / "lost+found/x.png")
        (folder / "lost+found").chmod(0)
        entries, found = inputs.expand([f"{folder}/**/*.png"])
        assert [entry.uri for entry in entries] == [good]
        assert list(found) == [f"{folder}/lost+found"] and "Permission denied" in found[f"{folder}/lost+found"]
        (folder / "lost+found").chmod(0o700)


def test_a_broken_list_of_bands_fails_alone(tmp_path: Path) -> None:
    good, broken = _touch(tmp_path / "good.png"), _touch(tmp_path / "broken.bands.toml")
    entries, found = inputs.expand([tmp_path])
    assert [entry.uri for entry in entries] == [good]
    assert list(found) == [broken] and "is no band list" in found[broken]


def test_images_of_one_stem_get_folders_that_do_not_depend_on_order(tmp_path: Path) -> None:
    uris = [str(tmp_path / name) for name in ("a/x.svs", "b/x.tif", "b/X.png", "c/y.svs")]
    there = {s.uri: s.name for s in assign_folders(uris, tmp_path / "out")}
    back = {s.uri: s.name for s in assign_folders(uris[::-1], tmp_path / "out")}
    assert there == back
    assert len({name.casefold() for name in there.values()}) == 4
    assert there[uris[3]] == "y"


def test_a_folder_stays_with_the_image_that_took_it(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a/x.svs"), str(tmp_path / "b/x.svs")
    out = tmp_path / "out"
    [alone] = assign_folders([first], out)
    _claim(alone.folder, first)
    names = {s.uri: s.name for s in assign_folders([second, first], out)}
    assert names[first] == "x"
    assert names[second] != "x"
    _claim(out / names[second], second)
    assert assign_folders([second], out)[0].name == names[second]


def test_images_of_one_relative_path_in_two_folders_stay_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Source] = []
    for place in ("a", "b", "a"):
        monkeypatch.chdir(Path(_touch(tmp_path / place / "x.svs")).parent)
        found += assign_folders(expand(["x.svs"]), tmp_path / "out")
        if not found[-1].folder.exists():
            _claim(found[-1].folder, found[-1].uri)
    assert [source.uri for source in found] == [str(tmp_path / place / "x.svs") for place in ("a", "b", "a")]
    assert found[0] == found[2] and found[0].name == "x" != found[1].name


def test_no_image_takes_the_place_of_a_file_of_the_archive(tmp_path: Path) -> None:
    names = ("summary.csv", "summary.parquet", "Report.html", "reviews.jsonl", "logs")
    for source, name in zip(assign_folders([f"/x/{name}.png" for name in names], tmp_path), names, strict=True):
        assert source.name.startswith(f"{name}-")


def test_images_that_lie_in_the_output_and_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    """`cases/case1/case1.png -o cases`, a Zarr image and a file without a suffix, a folder beside a MIRAX slide."""
    zarr, plain, mirax = tmp_path / "img", _touch(tmp_path / "scan"), _touch(tmp_path / "slide.mrxs")
    inside = _touch(tmp_path / "case1/case1.png")
    _touch(zarr / "zarr.json")
    _touch(tmp_path / "slide/Data0001.dat")
    (tmp_path / "new").mkdir()
    uris = [inside, str(zarr), plain, mirax, str(tmp_path / "new.png")]
    found = {source.uri: source for source in assign_folders(uris, tmp_path)}
    assert found[uris[-1]].name == "new", "an empty folder is nobody's"
    assert [found[uri].name[:-8] for uri in uris[:4]] == ["case1-", "img-", "scan-", "slide-"]
    for source in found.values():
        (source.folder / "job.json").parent.mkdir(exist_ok=True)
        (source.folder / "job.json").write_text(json.dumps({"uri": source.uri}))
    assert {s.uri: s for s in assign_folders(uris, tmp_path)} == found
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/record.json").write_text('{"mine": 1}')
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed/record.json").write_text('{"name": "failed", "status": "failed", "format": 1}')
    names = [s.name for s in assign_folders([str(tmp_path / "secret.png"), str(tmp_path / "failed.png")], tmp_path)]
    assert names[0].startswith("secret-") and names[1] == "failed", "one record is ours"
    _touch(tmp_path / "held/held.png")
    _touch(tmp_path / "held/job.json")
    [source] = assign_folders([str(tmp_path / "held/held.png")], tmp_path)
    assert source.name.startswith("held-"), "an older version wrote its results there"
    with pytest.raises(OutputError, match=r"img/out lies inside the image .*img, which it would change"):
        assign_folders([str(zarr)], zarr / "out")


def test_a_linked_folder_out_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="link out of the output folder"):
        assign_folders([str(tmp_path / "x.svs")], tmp_path / "out")


def test_two_images_never_get_one_folder(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a/x.svs"), str(tmp_path / "b/x.svs")
    taken = assign_folders([first, second], tmp_path / "out")[0].name
    with pytest.raises(OutputError, match="would both be written to"):
        assign_folders([first, second, str(tmp_path / f"c/{taken}.svs")], tmp_path / "out")
    with pytest.raises(OutputError, match="would both be written to"):
        assign_folders([first, first], tmp_path / "out")


@given(st.text(max_size=60))
@example("..")
@example("/archive/..")
@example("s3://bucket/..?version=../..")
@example("..\\..\\secret")
@example("/")
def test_no_uri_names_a_folder_outside_the_output(uri: str) -> None:
    name = safe_name(uri)
    assert name not in ("", ".", "..")
    assert Path(name).name == name
    assert (Path("/out") / name).parent == Path("/out")


def test_names_of_letters_of_several_bytes_leave_room_for_a_hash_and_for_deletion(tmp_path: Path) -> None:
    entries, _ = inputs.expand(_touch(tmp_path / folder / ("\u65e5" * 82 + ".svs")) for folder in "ab")
    for source in inputs.assign_folders(entries, tmp_path / "out"):
        source.folder.mkdir(parents=True)
        discard_folder(source.folder)
    assert not any((tmp_path / "out").iterdir())


def test_a_band_list_of_items_is_an_image_each(tmp_path: Path) -> None:
    features = [{"type": "Feature", "stac_version": "1.1.0", "id": key, "assets": {}} for key in ("S2A_31", "S2B/32")]
    (tmp_path / "search.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    path = tmp_path / "scenes/s2.bands.toml"
    path.parent.mkdir()
    path.write_text('items = "../search.json"\nbands = [{ asset = "red" }]')
    images = [(f"{path}#S2A_31", "S2A_31"), (f"{path}#S2B/32", "S2B/32")]
    for named in (path, path.parent):
        found = inputs.expand([named])[0]
        assert [(entry.uri, entry.name) for entry in found] == images
        assert [source.name for source in inputs.assign_folders(found, tmp_path / "out")] == ["S2A_31", "S2B_32"]
    (tmp_path / "list.csv").write_text("uri,name,spacing\nscenes/s2.bands.toml,May,10m\n")
    rows = [(entry.name, entry.spacing) for entry in inputs.expand([tmp_path / "list.csv"])[0]]
    assert rows == [("May_S2A_31", "10m"), ("May_S2B/32", "10m")]
    path.write_text('item = "../search.json"\nbands = [{ asset = "red" }]')
    assert expand([path]) == [str(path)], "one image, though it cannot be opened"


def test_a_video_is_its_frames(tmp_path: Path) -> None:
    import av
    import numpy as np

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=15)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        for value in (0, 100, 200):
            pixels = np.full((16, 16, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    found = inputs.expand([str(path)])[0]
    assert [(entry.uri, entry.name) for entry in found] == [(f"{path}#{i}", f"clip_{i:06d}") for i in range(3)]
    assert [source.name for source in inputs.assign_folders(found, tmp_path / "out")] == [
        f"clip_{i:06d}" for i in range(3)
    ]


def test_a_folder_is_a_dicom_slide_only_where_nothing_else_is_in_it(tmp_path: Path) -> None:
    for name in ("slide/level0.dcm", "slide/notes.txt", "mixed/small.dcm", "mixed/a.svs", "mixed/below/b.png"):
        _touch(tmp_path / name)
    assert expand([tmp_path / "slide"]) == [str(tmp_path / "slide")]
    mixed = [str(tmp_path / "mixed" / name) for name in ("a.svs", "below/b.png", "small.dcm")]
    assert expand([tmp_path / "mixed"]) == mixed
    assert expand([tmp_path]) == [*mixed, str(tmp_path / "slide")]
