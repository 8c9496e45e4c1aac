"""Which images a call names and which folder each gets: order-free, stable over calls, never outside the output."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unetpp.errors import ImageNotFoundError, OutputError
from unetpp_workflows import inputs
from unetpp_workflows.inputs import Source, safe_name
from unetpp_workflows.manifest import Entry


def expand(items: Iterable[str | Path]) -> list[str]:
    return [entry.uri for entry in inputs.expand(items)]


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
    with pytest.raises(ImageNotFoundError, match="no image in this folder"):
        expand([tmp_path / "empty"])
    with pytest.raises(ImageNotFoundError, match="nothing matches"):
        expand([f"{tmp_path}/*.svs"])


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


def test_a_linked_folder_out_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="link out of the output folder"):
        assign_folders([str(tmp_path / "x.svs")], tmp_path / "out")


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


def test_a_band_list_of_items_is_an_image_each(tmp_path: Path) -> None:
    features = [{"type": "Feature", "stac_version": "1.1.0", "id": key, "assets": {}} for key in ("S2A_31", "S2B/32")]
    (tmp_path / "search.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    path = tmp_path / "scenes/s2.bands.toml"
    path.parent.mkdir()
    path.write_text('items = "../search.json"\nbands = [{ asset = "red" }]')
    images = [(f"{path}#S2A_31", "S2A_31"), (f"{path}#S2B/32", "S2B/32")]
    for named in (path, path.parent):
        found = inputs.expand([named])
        assert [(entry.uri, entry.name) for entry in found] == images
        assert [source.name for source in inputs.assign_folders(found, tmp_path / "out")] == ["S2A_31", "S2B_32"]
    (tmp_path / "list.csv").write_text("uri,name,spacing\nscenes/s2.bands.toml,May,10m\n")
    rows = [(entry.name, entry.spacing) for entry in inputs.expand([tmp_path / "list.csv"])]
    assert rows == [("May_S2A_31", "10m"), ("May_S2B/32", "10m")]
    path.write_text('item = "../search.json"\nbands = [{ asset = "red" }]')
    assert expand([path]) == [str(path)], "one image, though it cannot be opened"


def test_a_video_is_its_frames(tmp_path: Path) -> None:
    import av
    import numpy as np

    from unetpp_workflows import inputs

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=15)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        for value in (0, 100, 200):
            pixels = np.full((16, 16, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    found = inputs.expand([str(path)])
    assert [(entry.uri, entry.name) for entry in found] == [(f"{path}#{i}", f"clip_{i:06d}") for i in range(3)]
    assert [source.name for source in inputs.assign_folders(found, tmp_path / "out")] == [
        f"clip_{i:06d}" for i in range(3)
    ]
