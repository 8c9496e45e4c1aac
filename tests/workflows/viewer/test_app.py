from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zarr
from PIL import Image
from starlette.testclient import TestClient

from unetpp_workflows.config import load_config
from unetpp_workflows.pipeline import segment
from unetpp_workflows.viewer import app as module
from unetpp_workflows.viewer.app import create_app
from unetpp_workflows.viewer.cache import Cache

from .conftest import HEIGHT, HOSTILE, WIDTH, Archives

pytestmark = pytest.mark.usefixtures("page_built")


@pytest.fixture
def client(archives: Archives) -> TestClient:
    return TestClient(create_app([archives.first, archives.second]), base_url="http://localhost")


@pytest.fixture
def plain(client: TestClient) -> str:
    return str(entry(client, "plain", "first")["id"])


@pytest.fixture
def version(client: TestClient) -> str:
    return str(entry(client, "plain", "first")["version"])


def entry(client: TestClient, name: str, output: str) -> dict[str, Any]:
    found = client.get("/api/images").json()["images"]
    return next(e for e in found if e["name"].startswith(name) and e["output"] == output)


def picture(client: TestClient, path: str) -> Image.Image:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_source_tiles_are_the_pixels_of_the_picture(
    client: TestClient, archives: Archives, plain: str, version: str
) -> None:
    truth = archives.pixels["plain.png"]
    right = np.asarray(picture(client, f"/api/images/{plain}/tiles/source/0/0/1?version={version}"))
    assert right.shape == (512, 512, 3)
    # JPEG moves noise of 30 grey levels by some; a tile from another place would differ by far more.
    assert np.abs(right.astype(int) - truth[:512, 512:1024]).mean() < 4
    corner = picture(client, f"/api/images/{plain}/tiles/source/0/1/2?version={version}")
    assert corner.size == (WIDTH - 1024, HEIGHT - 512)
    half = np.asarray(picture(client, f"/api/images/{plain}/tiles/source/1/0/0?version={version}")).astype(float)
    mean = truth[:700, :1024].reshape(350, 2, 512, 2, 3).mean((1, 3))
    assert half.shape == (350, 512, 3) and np.abs(half - mean).mean() < 4


def test_tiles_looked_at_during_a_run_are_drawn_anew_as_it_goes_on(
    ink_package: Path, blots: Callable[..., Path], tmp_path: Path
) -> None:
    def run() -> None:
        config = load_config(sets=["tracking.enabled=false", "tiling.core=32"])
        assert segment([blots("a.png")], ink_package, tmp_path / "out", config=config).exit_code == 0

    def look() -> tuple[np.ndarray, str]:
        answer = client.get(f"{one}/tiles/labels/0/0/0", params={"version": client.get(one).json()["version"]})
        return np.asarray(Image.open(io.BytesIO(answer.content))), answer.headers["cache-control"]

    run()
    image = tmp_path / "out" / "a"
    stored = np.asarray(zarr.open_array(image / "labels.ome.zarr/classes/0", mode="r"))
    # As it was while the last of its shards was computed.
    (image / "record.json").unlink()
    (image / "commits/0.1.json").unlink()
    (image / "labels.ome.zarr/classes/0/c/0/1").unlink()
    (image / "polygons.geojson").unlink()
    client = TestClient(create_app([tmp_path / "out"]), base_url="http://localhost")
    (found,) = client.get("/api/images").json()["images"]
    one, box = f"/api/images/{found['id']}", {"version": found["version"], "box": "0,0,9,9"}
    early, control = look()
    assert "before" in client.get(f"{one}/objects", params=box).json()["note"]
    assert found["status"] == "running or interrupted" and control == "private, max-age=5"
    assert (early[:32, 32:64] == 255).all() and np.array_equal(early[32:], stored[32:])
    run()
    late, control = look()
    assert np.array_equal(late, stored) and control == "private, max-age=3600"
    done = client.get(one).json()
    assert done["status"] == "done" and client.get(f"{one}/objects", params=box).status_code == 409
    assert "note" not in client.get(f"{one}/objects", params={**box, "version": done["version"]}).json()


@pytest.mark.parametrize("z", [0, 1])
def test_label_tiles_are_the_stored_classes(
    client: TestClient, archives: Archives, plain: str, version: str, z: int
) -> None:
    stored = np.asarray(zarr.open_array(archives.first / "plain" / "labels.ome.zarr/classes" / str(z), mode="r"))
    tile = picture(client, f"/api/images/{plain}/tiles/labels/{z}/0/{1 - z}?version={version}&show=0.1")
    part = stored[:512, 512:1024] if z == 0 else stored[:512, :512]
    assert tile.mode == "P" and np.array_equal(np.asarray(tile), part) and set(np.unique(part)) == {0, 1}
    colours = np.asarray(tile.convert("RGBA"))
    assert (colours[part == 1] == (200, 30, 60, 255)).all()
    without = np.asarray(
        picture(client, f"/api/images/{plain}/tiles/labels/{z}/0/{1 - z}?version={version}&show=0").convert("RGBA")
    )
    assert (without[part == 1][:, 3] == 0).all() and (without[part == 0][:, 3] == 255).all()


def test_probability_tiles_are_the_stored_map(client: TestClient, archives: Archives, plain: str, version: str) -> None:
    stored = np.asarray(zarr.open_array(archives.first / "plain" / "probabilities.ome.zarr/0", mode="r"))
    tile = np.asarray(
        picture(client, f"/api/images/{plain}/tiles/probabilities.1/0/0/1?version={version}").convert("RGBA")
    )
    assert np.array_equal(tile[..., 3], stored[1, :512, 512:1024])
    assert client.get(f"/api/images/{plain}/tiles/probabilities.2/0/0/0?version={version}").status_code == 404
    assert client.get(f"/api/images/{plain}/tiles/uncertainty/0/0/0?version={version}").status_code == 404


def test_the_object_under_a_point_comes_with_its_area(client: TestClient, plain: str, version: str) -> None:
    found = client.get(f"/api/images/{plain}/objects?version={version}&box=150,430,150,430").json()
    ink = [f for f in found["features"] if f["properties"]["class"] == "ink"]
    assert len(ink) == 1 and ink[0]["properties"]["measurements"]["Area px^2"] == 60 * 80
    assert client.get(f"/api/images/{plain}/objects?version={version}&box=1,2").status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/..%2f..%2fetc%2fpasswd",
        "/api/images/plain",
        "/api/images/{id}/tiles/..%2f..%2frecord.json/0/0/0",
        "/api/images/{id}/tiles/source/99/0/0?version={version}",
        "/api/images/{id}/tiles/labels/0/7/0?version={version}",
        "/static/..%2fapp.py",
        "/static/../app.py",
    ],
)
def test_only_what_was_listed_is_found(client: TestClient, plain: str, version: str, path: str) -> None:
    assert client.get(path.replace("{id}", plain).replace("{version}", version)).status_code == 404


def test_no_answer_names_a_folder_or_file_of_this_machine(client: TestClient, archives: Archives, plain: str) -> None:
    for path in ("/api/images", f"/api/images/{plain}", f"/api/images/{plain}/reviews", "/api/images/x"):
        answer = client.get(path)
        assert str(archives.first.parent) not in answer.text and "uri" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_another_host_name_is_refused_and_a_token_is_asked_for(archives: Archives) -> None:
    local = create_app([archives.first])
    assert TestClient(local, base_url="http://evil.example").get("/api/images").status_code == 400
    word = "secret-ä"
    guarded = TestClient(create_app([archives.first], hosts=["*"], token=word), base_url="http://any.example")
    assert guarded.get("/api/images").status_code == 401
    assert guarded.get("/?token=wrong").status_code == 401
    assert guarded.get("/static/app.js").status_code == 401
    entered = guarded.get("/", params={"token": word}, follow_redirects=False)
    assert entered.status_code == 303 and "token" not in entered.headers["location"]
    assert "HttpOnly" in entered.headers["set-cookie"] and "strict" in entered.headers["set-cookie"].lower()


def test_two_viewers_on_one_host_know_their_own_tokens(archives: Archives, page_built: None) -> None:
    apps = {word: create_app([archives.first], hosts=["*"], token=word) for word in ("one", "two")}
    cookies = httpx.Cookies()  # as a browser's, which tells hosts apart, and not ports
    for word, app in apps.items():
        with TestClient(app, base_url="http://any.example", cookies=cookies) as client:
            client.get("/", params={"token": word})
            cookies = client.cookies
    for app in apps.values():
        with TestClient(app, base_url="http://any.example", cookies=cookies) as client:
            assert client.get("/api/images").status_code == 200


def test_the_printed_address_is_one_that_other_machines_can_open(archives: Archives, page_built: None) -> None:
    command = [sys.executable, "-m", "unetpp_workflows", "view", str(archives.first), "--port", "0", "--host", "::"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout
        said = viewer.stdout.readline()
        viewer.terminate()
    assert said.startswith(f"open http://{socket.gethostname()}:") and "?token=" in said, said


def test_the_printed_address_answers_at_once_and_ending_the_viewer_is_no_interruption(
    archives: Archives, page_built: None
) -> None:
    command = [sys.executable, "-m", "unetpp_workflows", "view", str(archives.first), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout and viewer.stderr
        address = viewer.stdout.readline().split()[1]
        socket.create_connection(("127.0.0.1", httpx.URL(address).port or 0)).close()
        assert httpx.get(f"{address}api/images").status_code == 200
        viewer.terminate()
        assert (viewer.wait(120), viewer.stderr.read()) == (0, "")


def test_a_page_that_was_never_built_says_what_to_do(
    archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetpp.errors import ConfigError

    monkeypatch.setattr(module, "STATIC", tmp_path)
    with pytest.raises(ConfigError, match="make viewer"):
        create_app([archives.first])


def test_reviews_are_kept_in_order_and_a_torn_line_costs_only_itself(
    client: TestClient, archives: Archives, plain: str, version: str, address: str
) -> None:
    path, at = f"/api/images/{plain}/reviews", {"version": version}
    log = archives.first / "reviews.jsonl"
    log.unlink(missing_ok=True)
    region = [[10, 10], [60, 10], [60, 60]]
    with ThreadPoolExecutor(8) as pool:
        sent = [{"verdict": "accepted", "region": region, "note": f"n{k}", "reviewer": "Ada"} for k in range(24)]
        codes = list(pool.map(lambda body: httpx.post(address + path[1:], json=body, params=at).status_code, sent))
    assert codes == [201] * 24
    with log.open("ab") as file:
        file.write(b'{"id": "image", "verdict": "reje')
    assert client.post(path, json={"verdict": "rejected", "note": "blurred"}, params=at).status_code == 201
    found = client.get(path).json()["reviews"]
    assert {r["note"] for r in found} == {f"n{k}" for k in range(24)} | {"blurred"}
    assert found[-1]["id"] == "image" and all(r["when"] and r["reviewer"] for r in found)
    assert len(log.read_bytes().splitlines()) == 26
    assert entry(client, "plain", "first")["verdict"] == "rejected"
    client.post(path, json={"id": "image", "verdict": "withdrawn"}, params=at)
    assert entry(client, "plain", "first")["verdict"] is None
    log.unlink()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"verdict": "great"}, {}, 422),
        ({"verdict": "to correct", "label": "blood", "region": [[0, 0], [9, 0], [9, 9]]}, {}, 422),
        ({"verdict": "accepted", "id": "../../x"}, {}, 422),
        ({"verdict": "accepted", "region": [[0, 0], [1e300, 0], [1, 1]]}, {}, 422),
        ({"verdict": "accepted", "path": "/etc"}, {}, 422),
        ({"verdict": "accepted", "region": [[1101, 0], [1200, 0], [1200, 50]]}, {}, 422),
        ({"verdict": "accepted", "region": [[10, -60], [50, -60], [50, -1]]}, {}, 422),
        ({"verdict": "accepted", "region": [[0, 0], [10, 10]]}, {}, 422),
        ({"verdict": "accepted", "region": [[0, 0], [9, 0], [9, 9]], "id": "image"}, {}, 422),
        ({"verdict": "accepted", "region": [[0, 0], [9, 0], [9, 9]], "label": "ink"}, {}, 422),
        ({"verdict": "to correct", "label": "ink"}, {}, 422),
        ({"verdict": "rejected", "id": "0123456789abcdef"}, {}, 422),
        (["accepted"], {}, 422),
        ({"verdict": "accepted", "note": "x" * 300_000}, {}, 413),
        ({"verdict": "accepted"}, {"content-type": "text/plain"}, 415),
        ({"verdict": "accepted"}, {"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_what_is_no_review_of_this_page_is_refused(
    client: TestClient,
    archives: Archives,
    plain: str,
    version: str,
    body: dict[str, Any],
    headers: dict[str, str],
    status: int,
) -> None:
    kinds = {"content-type": "application/json", **headers}
    answer = client.post(f"/api/images/{plain}/reviews?version={version}", content=json.dumps(body), headers=kinds)
    assert answer.status_code == status, answer.text
    assert not (archives.first / "reviews.jsonl").exists()


def test_what_is_asked_or_said_of_other_labels_than_those_there_is_refused(
    archives: Archives, ink_variant: Callable[..., Path], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(archives.second, tmp_path / "out"))
    client = TestClient(create_app([output]), base_url="http://localhost")
    seen = entry(client, "plain", "out")
    one, verdict = f"/api/images/{seen['id']}", {"id": "image", "verdict": "accepted"}
    asked: list[Callable[[dict[str, str]], httpx.Response]] = [
        lambda at: client.post(f"{one}/reviews", json=verdict, params=at),
        lambda at: client.get(f"{one}/tiles/labels/2/0/0", params=at),
        lambda at: client.get(f"{one}/objects", params={**at, "box": "0,0,9,9"}),
    ]
    for ask in asked:
        assert ask({}).status_code == 400 and "version is missing" in ask({}).json()["error"]
    record = output / "plain" / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "warning": "noted after the labels were made"}))
    for ask in asked:
        assert ask({"version": seen["version"]}).status_code in (200, 201)
    brighter = ink_variant(tmp_path / "brighter", threshold=120, name="brighter")
    source = str(archives.first.parent / "in" / "plain.png")
    assert segment([source], model=str(brighter), output=output).exit_code == 0
    for ask in asked:
        answer = ask({"version": seen["version"]})
        assert answer.status_code == 409 and "plain was segmented anew" in answer.json()["error"]
    image = client.get(f"{one}/tiles/source/2/0/0", params={"version": seen["version"]})
    assert image.status_code == 200, "the image is the same, whatever its labels are"
    assert len((output / "reviews.jsonl").read_bytes().splitlines()) == 1
    assert entry(client, "plain", "out")["verdict"] is None
    for ask in asked:
        assert ask({"version": entry(client, "plain", "out")["version"]}).status_code in (200, 201)
    assert entry(client, "plain", "out")["verdict"] == "accepted"


@pytest.mark.parametrize("box", ["", "1,2,3", "nan,0,9,9", "-inf,0,inf,9", "a,b,c,d"])
def test_objects_are_asked_for_by_a_box(client: TestClient, plain: str, version: str, box: str) -> None:
    assert client.get(f"/api/images/{plain}/objects", params={"version": version, "box": box}).status_code == 400


def test_damage_is_told_without_naming_a_folder(
    archives: Archives, tmp_path: Path, page_built: None, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(archives.second, tmp_path / "copy")) / "plain"
    shutil.rmtree(copy / "labels.ome.zarr")
    outlines = copy / "polygons.geojson"
    outlines.write_bytes(outlines.read_bytes()[: outlines.stat().st_size // 2])
    with TestClient(create_app([tmp_path / "copy"]), base_url="http://localhost") as client:
        found = entry(client, "plain", "copy")
        one, at = f"/api/images/{found['id']}", {"version": found["version"]}
        for path in ("/tiles/labels/0/0/0", "/objects"):
            answer = client.get(one + path, params={**at, "box": "0,0,1100,700"})
            assert answer.status_code == 500 and "terminal" in answer.json()["error"]
            assert str(tmp_path) not in answer.text
    said = capfd.readouterr().out
    assert "labels.ome.zarr" in said and "the outlines of plain" in said and "verify" in said


def test_hostile_names_stay_names(client: TestClient) -> None:
    assert entry(client, HOSTILE[:4], "first")["name"].startswith("<img")


def test_the_cache_stays_within_its_bytes() -> None:
    made: list[int] = []

    def make(k: int) -> bytes:
        made.append(k)
        return bytes(100)

    cache: Cache[bytes] = Cache(1000, len)
    for k in range(50):
        cache.get(k, lambda k=k: make(k))  # type: ignore[misc]
        cache.get(0, lambda: make(0))
    assert cache.used == 1000 and made == list(range(50))
