"""The registry against a real MLflow store on SQLite files: round trip, idempotence, references, racing first use."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unetpp.errors import ConfigError, ModelNotFoundError, ModelPackageError, OutputError, PromotionError, RegistryError
from unetpp.geometry import Spacing
from unetpp.home import home
from unetpp.model import GridConfig, UNetPlusPlus
from unetpp.package import ClassInfo, ModelSpec, load_package, save_package
from unetpp_workflows import registry
from unetpp_workflows.mlflow_store import init_store, store_uri
from unetpp_workflows.promotion import history

CLASSES = (
    ClassInfo(value=0, name="other", color=(0, 0, 0), background=True),
    ClassInfo(value=7, name="tissue", color=(200, 0, 0)),
    ClassInfo(value=3, name="fat", color=(0, 200, 0)),
)


def make_package(folder: Path, seed: int = 0, name: str = "toy") -> Path:
    torch.manual_seed(seed)
    config = GridConfig(bands=2, classes=3, filters=(4, 6, 8))
    spec = ModelSpec(
        name=name,
        architecture=config,
        classes=CLASSES,
        bands=("red", "nir"),
        mean=(900.0, 1100.0),
        std=(300.0, 250.0),
        dtype="uint16",
        spacing=Spacing(0.5, 0.5, "m"),
    )
    return save_package(folder, UNetPlusPlus(config), spec, "# toy").folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("package") / "toy")


@pytest.fixture(scope="module")
def filled_home(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Path:
    """A home folder whose registry holds `toy` version 1 as champion; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("filled")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert registry.register_package(package, alias="champion", tracking_uri=uri) == "1"
    return folder


@pytest.fixture(autouse=True)
def own_home(filled_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNETPP_HOME", str(filled_home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_default_store_is_sqlite_in_home_and_is_overruled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "new"))
    assert store_uri() == f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    assert not (tmp_path / "new").exists()  # asking creates nothing
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert store_uri() == "http://mlflow:5000"
    assert store_uri("sqlite:///x.db") == "sqlite:///x.db"
    monkeypatch.delenv("UNETPP_HOME")
    assert home().name == ".unetpp"


def test_resolve_by_alias_version_folder_and_bundled_name(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = load_package(package).digest
    by_alias = registry.resolve("models:/toy@champion")
    assert (by_alias.name, by_alias.version, by_alias.alias) == ("toy", "1", "champion")
    assert by_alias.uri == "models:/toy/1"
    assert by_alias.folder != package
    assert load_package(by_alias.folder).digest == digest == by_alias.digest
    by_version = registry.resolve("models:/toy/1")
    assert (by_version.folder, by_version.alias) == (by_alias.folder, None)
    by_folder = registry.resolve(package)
    assert (by_folder.folder, by_folder.version, by_folder.digest) == (package, None, digest)

    import unetpp.package

    monkeypatch.setattr(unetpp.package, "BUNDLED", package.parent)
    bundled = registry.resolve("toy")
    assert (bundled.folder, bundled.uri, bundled.digest) == (package, "bundled:toy", digest)


def test_resolve_downloads_only_data_and_never_code(package: Path) -> None:
    found = registry.resolve("models:/toy@champion")
    assert sorted(path.name for path in found.folder.iterdir()) == ["model.json", "weights.safetensors"]
    inode = (found.folder / "weights.safetensors").stat().st_ino
    again = registry.resolve("models:/toy@champion")
    assert (again.folder / "weights.safetensors").stat().st_ino == inode  # not copied a second time


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("models:/nobody@champion", ["nobody", "registered: toy", "models register"]),
        ("models:/toy@best", ["'best'", "champion -> 1"]),
        ("models:/toy/9", ["version 9", "versions: 1"]),
        ("models:/toy", ["models:/name@alias"]),
        ("models:/../x@y", ["models:/name@alias"]),
        ("toy@champion", ["did you mean models:/toy@champion"]),
        ("no/such/folder", ["no such folder"]),
        ("models:/nuclei@champion", ["unetpp models register nuclei --alias champion"]),
    ],
)
def test_missing_models_name_what_there_is(reference: str, words: list[str]) -> None:
    with pytest.raises(ModelNotFoundError) as error:
        registry.resolve(reference)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def copy_home(filled: Path, target: Path) -> str:
    """Copy a home folder; artifact locations in the database are rewritten to the copy."""
    shutil.copytree(filled, target)
    with sqlite3.connect(target / "mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",  # noqa: S608  # names are ours
                (str(filled), str(target)),
            )
    return f"sqlite:///{target / 'mlflow.db'}"


def test_register_is_idempotent_by_digest_and_aliases_move(filled_home: Path, package: Path, tmp_path: Path) -> None:
    uri = copy_home(filled_home, tmp_path / "home")
    assert registry.register_package(package, tracking_uri=uri) == "1"
    other = make_package(tmp_path / "other", seed=1)
    assert registry.register_package(other, alias="challenger", tracking_uri=uri) == "2"
    assert registry.register_package(other, alias="candidate", tracking_uri=uri) == "2"
    assert registry.register_package(package, alias="candidate", tracking_uri=uri) == "1"
    rows = registry.list_models(tracking_uri=uri)
    assert [(row.version, row.aliases) for row in rows] == [("2", ("challenger",)), ("1", ("candidate", "champion"))]
    assert rows[0].tags["unetpp.digest"] == load_package(other).digest
    assert rows[0].tags["unetpp.spacing"] == "0.5 m/px"
    resolved = registry.resolve("models:/toy@challenger", tracking_uri=uri, cache=tmp_path / "cache")
    assert (resolved.version, resolved.digest) == ("2", load_package(other).digest)
    # The same weights under another registered name are a version of that model, not of this one.
    assert registry.register_package(other, "second", tracking_uri=uri) == "1"
    with pytest.raises(ModelNotFoundError, match="no version 5"):
        registry.set_alias("toy", "champion", "5", tracking_uri=uri)


def test_a_model_of_another_team_with_any_name_is_listed(filled_home: Path, package: Path) -> None:
    init_store(store_uri()).create_registered_model("Bob's model")
    assert [row.name for row in registry.list_models()] == ["toy"]
    with pytest.raises(ModelNotFoundError, match='model "Bob\'s model" has no version'):
        registry.version_of(init_store(store_uri()), store_uri(), "Bob's model", None)
    assert history("Bob's model") == []


def test_registering_does_not_replace_a_champion(filled_home: Path, package: Path, tmp_path: Path) -> None:
    uri = copy_home(filled_home, tmp_path / "home")
    assert registry.register_package(package, alias="champion", tracking_uri=uri) == "1"  # it is that already
    other = make_package(tmp_path / "other", seed=1)
    for _ in range(2):
        with pytest.raises(PromotionError, match=r"version 1 of 'toy' is @champion.*unetpp promote toy"):
            registry.register_package(other, alias="champion", tracking_uri=uri)
        assert {row.version: row.aliases for row in registry.list_models(tracking_uri=uri)}["1"] == ("champion",)
        # Refused before anything is registered, then once more with the version there.
        registry.register_package(other, tracking_uri=uri)
    with pytest.raises(PromotionError, match="@champion"):
        registry.set_alias("toy", "champion", "2", tracking_uri=uri)
    with pytest.raises(PromotionError, match="@champion"):
        registry.check_alias("toy", "champion", tracking_uri=uri)
    registry.check_alias("new", "champion", tracking_uri=uri)
    assert registry.register_package(other, "new", alias="champion", tracking_uri=uri) == "1"


@pytest.mark.parametrize("alias", ["v1", "latest", "a/b", "1st", ""])
def test_aliases_that_mlflow_reserves_are_refused(alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        registry.set_alias("toy", alias, "1")


def test_the_way_back_is_moved_by_promotions_only(filled_home: Path, package: Path, tmp_path: Path) -> None:
    uri = copy_home(filled_home, tmp_path / "home")
    other = make_package(tmp_path / "other", seed=1)
    for refused in (
        lambda: registry.set_alias("toy", "previous", "1", tracking_uri=uri),
        lambda: registry.register_package(other, alias="previous", tracking_uri=uri),
        lambda: registry.check_alias("toy", "previous", tracking_uri=uri),
    ):
        with pytest.raises(ConfigError, match=r"'previous' is kept by promotions.*unetpp rollback"):
            refused()
    (row,) = (row for row in registry.list_models(tracking_uri=uri) if row.name == "toy")
    assert row.version == "1" and "previous" not in row.aliases


def test_a_broken_package_is_refused_before_anything_is_written(package: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelPackageError):
        registry.register_package(broken, tracking_uri=f"sqlite:///{tmp_path / 'db' / 'mlflow.db'}")
    assert not (tmp_path / "db").exists()


def test_changed_registry_files_are_refused(filled_home: Path, tmp_path: Path) -> None:
    uri = copy_home(filled_home, tmp_path / "home")
    (stored,) = (tmp_path / "home").glob("mlartifacts/**/package/model.json")
    values = json.loads(stored.read_text())
    values["mean"] = [0.0, 0.0]
    stored.write_text(json.dumps(values))
    with pytest.raises(ModelPackageError, match="digest"):
        registry.resolve("models:/toy@champion", tracking_uri=uri, cache=tmp_path / "cache")
    stored.unlink()
    with pytest.raises(ModelPackageError, match=r"model\.json cannot be read"):
        registry.resolve("models:/toy@champion", tracking_uri=uri, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []


def test_a_card_that_cannot_be_read_is_not_a_model_without_one(tmp_path: Path, package: Path) -> None:
    """A promotion would refuse the model for it, for good."""
    bare = Path(shutil.copytree(package, tmp_path / "bare"))
    (bare / "MODEL_CARD.md").unlink()
    uri = f"sqlite:///{tmp_path / 'store/mlflow.db'}"
    for folder, name, card in ((package, "toy", "# toy"), (bare, "bare", "")):
        registry.register_package(folder, name, tracking_uri=uri)
        model = registry.resolve(f"models:/{name}/1", tracking_uri=uri)
        assert registry.read_card(model, tracking_uri=uri) == card
        artifacts = tmp_path / "store/mlartifacts"
        artifacts.rename(tmp_path / "away")
        with pytest.raises(RegistryError, match=rf"models:/{name}/1: nothing lies at .*package; the artifact store is"):
            registry.read_card(model, tracking_uri=uri)
        (tmp_path / "away").rename(artifacts)


def test_a_damaged_cache_entry_is_fetched_again(tmp_path: Path) -> None:
    found = registry.resolve("models:/toy/1", cache=tmp_path)
    (found.folder / "weights.safetensors").write_bytes(b"torn")
    again = registry.resolve("models:/toy/1", cache=tmp_path)
    assert load_package(again.folder).digest == found.digest


def test_stores_that_cannot_be_used_say_so(tmp_path: Path) -> None:
    garbage = tmp_path / "mlflow.db"
    garbage.write_bytes(b"this is no database" * 100)
    with pytest.raises(RegistryError, match="not a database"):
        init_store(f"sqlite:///{garbage}")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="UNETPP_HOME"):
        init_store(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_a_dead_server_is_one_line_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RegistryError) as error:
        registry.list_models(tracking_uri=f"http://user:secret@127.0.0.1:{port}")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


FIRST_USE = """
import sys
from unetpp_workflows.mlflow_store import experiment, init_store
sys.stdin.readline()
client = init_store(sys.argv[1])
print(experiment(client, sys.argv[1], "unetpp-race"))
"""


@pytest.mark.timeout(600)
def test_four_processes_may_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=500) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1  # one experiment, the same for all
    assert init_store(uri).search_experiments(filter_string="name = 'unetpp-race'")
    assert not (Path.cwd() / "mlruns").exists()


SERVE = """
import json, sys
import numpy as np, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/toy@champion")
images = np.load(sys.argv[2])
labels = model.predict(images)
np.save(sys.argv[3], labels)
refused = []
for wrong, params in ((np.zeros((1, 16, 16, 2), np.uint8), None), (images, {"tta": "d8"})):
    try:
        model.predict(wrong, params=params)
    except Exception as error:
        refused.append(str(error))
turned = int((model.predict(images, params={"tta": "d4"}) != labels).sum())
print(json.dumps({"signature": str(model.metadata.signature), "refused": refused, "turned": turned,
    "loaded": sorted(m for m in sys.modules if m.split(".")[0] in ("ray", "unetpp_workflows", "typer"))}))
"""


def test_pyfunc_loads_in_a_plain_process_and_predicts_what_torch_predicts(
    filled_home: Path, package: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(300, 1700, (2, 37, 53, 2)).astype(np.uint16)
    np.save(tmp_path / "images.npy", images)
    answer = subprocess.run(
        [sys.executable, "-c", SERVE, store_uri(), tmp_path / "images.npy", tmp_path / "labels.npy"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert answer.returncode == 0, answer.stderr
    assert "arning" not in answer.stderr
    told = json.loads(answer.stdout)
    assert told["loaded"] == []
    assert "dtype of input uint8" in told["refused"][0]
    assert told["refused"][1] == "tta 'd8' is unknown; choose none, mirror, flips, d4"
    assert told["turned"] > 0 and "['tta': string (default: none)]" in told["signature"]
    assert "uint16" in told["signature"]
    assert "(-1, -1, -1, 2)" in told["signature"]
    loaded = load_package(package)
    x = (torch.from_numpy(images.astype(np.float32)) - torch.tensor(loaded.spec.mean)) / torch.tensor(loaded.spec.std)
    with torch.inference_mode():
        winner = loaded.load_model()(x.permute(0, 3, 1, 2)).argmax(1).numpy()
    labels = np.load(tmp_path / "labels.npy")
    expected = np.array([0, 7, 3], np.uint8)[winner]
    assert labels.dtype == np.uint8
    assert len(np.unique(expected)) == 3
    assert (labels == expected).mean() > 0.999  # the served network is folded: ties may fall to the other side


def test_nothing_stored_is_a_pickle(filled_home: Path) -> None:
    files = [path for path in filled_home.glob("mlartifacts/**/*") if path.is_file()]
    assert {"weights.safetensors", "model.json", "MODEL_CARD.md", "MLmodel", "pyfunc_model.py"} <= {
        p.name for p in files
    }
    assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
