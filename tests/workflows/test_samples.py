"""Samples by hash: the data folder, a real local web server with every fault it can have, and the drawn images."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import skimage.data
import tifffile

import unetpp_workflows
from unetpp.drawing import SCENE_CLASSES
from unetpp.errors import ConfigError, DataError
from unetpp_workflows import samples
from unetpp_workflows.samples import Sample, catalogue, fetch, stained_tissue, synthetic_scene, synthetic_slide

CONTENT = bytes(range(256)) * 400
GOOD = Sample(
    name="local",
    path="slides/local.svs",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    kind="slide",
    licence="none",
)


class _Handler(http.server.BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/good":
            self.wfile.write(CONTENT)
        elif self.path == "/other":
            self.wfile.write(CONTENT[::-1])
        elif self.path == "/short":
            self.wfile.write(CONTENT[:1000])
        elif self.path == "/trickle":
            try:
                for byte in CONTENT[:400]:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                return

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as web:
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()


@pytest.fixture(autouse=True)
def no_data_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "data_dir" not in request.fixturenames:
        monkeypatch.delenv("UNETPP_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_catalogue_fits_together() -> None:
    by_name = {sample.name: sample for sample in catalogue()}
    assert len(by_name) == len(catalogue())
    for sample in catalogue():
        assert len(sample.sha256) == 64
        assert not Path(sample.path).is_absolute()
        if sample.truth:
            assert by_name[sample.truth].kind == "labels"
    with pytest.raises(ConfigError, match="cmu-1-small-region"):
        fetch("no-such-sample")


def test_truth_has_the_names_and_values_of_the_landcover_model() -> None:
    recipe = Path(unetpp_workflows.__file__).parent / "recipes" / "landcover.toml"
    known = {entry["name"]: entry["value"] for entry in tomllib.loads(recipe.read_text(encoding="utf-8"))["classes"]}
    assert known == SCENE_CLASSES
    for sample in catalogue():
        assert {name for name, _ in sample.classes} <= set(known)


def test_the_data_folder_holds_what_the_catalogue_says(data_dir: Path) -> None:
    for sample in catalogue():
        found = fetch(sample.name)
        assert found.path == data_dir / sample.path
        assert found.reason is None


def test_a_file_with_another_hash_in_the_data_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNETPP_DATA", str(tmp_path))
    (tmp_path / "slides").mkdir()
    (tmp_path / GOOD.path).write_bytes(CONTENT)
    assert fetch(GOOD).path == tmp_path / GOOD.path
    (tmp_path / GOOD.path).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DataError, match=r"local\.svs: SHA-256") as error:
        fetch(GOOD)
    assert "\n" not in str(error.value)


def test_without_folder_and_address_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fetch(GOOD)
    assert found.path is None
    assert "UNETPP_DATA is not set" in str(found.reason)
    monkeypatch.setenv("UNETPP_DATA", str(tmp_path / "empty"))
    assert f"not in UNETPP_DATA={tmp_path / 'empty'}" in str(fetch(GOOD).reason)


def test_a_download_is_checked_and_kept(server: str, tmp_path: Path) -> None:
    sample = replace(GOOD, url=f"{server}/good")
    found = fetch(sample, cache=tmp_path)
    assert found.path is not None
    assert found.path.read_bytes() == CONTENT
    assert fetch(sample, cache=tmp_path).path == found.path
    assert _Handler.requests == 1
    found.path.write_bytes(b"torn")
    assert fetch(sample, cache=tmp_path).path == found.path
    assert found.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "word"),
    [("missing", "404"), ("other", "SHA-256 differs"), ("short", "failed"), ("trickle", "not finished")],
)
def test_every_fault_of_a_server_is_a_reason(
    server: str, page: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_TOTAL_SECONDS", 0.5)
    found = fetch(replace(GOOD, url=f"{server}/{page}"), cache=tmp_path)
    assert found.path is None
    assert found.reason is not None
    assert word in found.reason
    assert "\n" not in found.reason
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_no_network_is_a_reason(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = fetch(replace(GOOD, url=f"http://127.0.0.1:{port}/x"), cache=tmp_path)
    assert found.path is None
    assert "refused" in str(found.reason)
    (tmp_path / "file").write_text("")
    assert fetch(replace(GOOD, url="http://127.0.0.1/x"), cache=tmp_path / "file" / "cache").path is None


def test_stained_tissue_is_a_photograph_without_spacing(tmp_path: Path) -> None:
    path = stained_tissue(tmp_path / "demo")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert page.shape == (512, 512, 3)
        assert page.resolution == (1, 1)
        assert page.resolutionunit == 1  # none
        pixels = page.asarray()
    assert pixels.std() > 20
    assert np.array_equal(pixels, skimage.data.immunohistochemistry())
    before = path.stat().st_mtime_ns
    assert stained_tissue(tmp_path / "demo").stat().st_mtime_ns == before


def test_synthetic_images_say_so_and_are_drawn_once(tmp_path: Path) -> None:
    slide = synthetic_slide(tmp_path / "new", side=1024)
    scene = synthetic_scene(tmp_path / "new", side=512)
    with rasterio.open(scene.path) as opened:
        assert "SYNTHETIC" in opened.tags()["TIFFTAG_IMAGEDESCRIPTION"]
        assert opened.crs.is_projected
    files = (slide.path, slide.truth, scene.path, scene.truth)
    assert all("synthetic" in path.name for path in files)
    before = [path.stat().st_mtime_ns for path in files]
    assert synthetic_slide(tmp_path / "new", side=1024) == slide
    assert synthetic_scene(tmp_path / "new", side=512) == scene
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_torn_or_other_drawing_is_drawn_again(tmp_path: Path) -> None:
    scene = synthetic_scene(tmp_path, side=256)
    whole = scene.path.read_bytes()
    scene.path.write_bytes(b"torn")
    synthetic_scene(tmp_path, side=256)
    assert scene.path.read_bytes() == whole
    scene.truth.unlink()
    synthetic_scene(tmp_path, side=256)
    assert scene.truth.is_file()
    synthetic_scene(tmp_path, side=256, seed=8)
    assert scene.path.read_bytes() != whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["synthetic_scene.tif", "synthetic_scene_truth.tif"]
