"""A recipe becomes a registered model: on one worker, on several, through kills, and with its MLflow run."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zarr
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.disk import fill
from unetpp.errors import (
    ConfigError,
    DataError,
    EngineError,
    OutputError,
    PromotionError,
    RegistryError,
    StoreError,
)
from unetpp.model import halo
from unetpp.package import SPEC, load_package
from unetpp.train.store import export
from unetpp_workflows import mlflow_store
from unetpp_workflows.cli import app
from unetpp_workflows.evaluation import EvaluationData, check_fit
from unetpp_workflows.figures import plain
from unetpp_workflows.mlflow_store import init_store, store_uri
from unetpp_workflows.prepare.build import prepare
from unetpp_workflows.prepare.dataset import Dataset
from unetpp_workflows.recipe import architecture, load_recipe
from unetpp_workflows.registry import list_models, register_package, resolve
from unetpp_workflows.training import TIME_UP, TrainOptions, export_training, run_training
from unetpp_workflows.training_data import STORE, prepared_store
from unetpp_workflows.training_job import PROGRESS, Journal
from unetpp_workflows.training_tracking import TrainingRun

SMALL = [
    "drawn.slides=2", "data.validation=['drawn_1']", "network.filters=[4, 8]", "train.patch=32", "train.batch=4",
    "train.steps=24", "train.validate_every=8", "train.precision='fp32'",
]  # fmt: skip


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training store of the small recipe."""
    return prepared_store(load_recipe("smoke", SMALL), None, tmp_path_factory.mktemp("smoke"))


def run(output: Path, store: Path | None, sets: list[str] = SMALL, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = run_training(
        "smoke", data=None, output=output, sets=sets, options=TrainOptions(store=store, **options), console=console
    )
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def losses(output: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in json.loads((output / "history.json").read_text())]


def test_an_alias_that_cannot_be_given_is_refused_before_training(ink_package: Path, tmp_path: Path) -> None:
    register_package(ink_package, "smoke", alias="champion")
    for alias, error in (("champion", PromotionError), ("previous", ConfigError), ("latest", ConfigError)):
        with pytest.raises(error, match=r"alias|@champion"):
            run(tmp_path / "out", None, alias=alias)
    assert not (tmp_path / "out" / "history.json").exists()


def test_a_recipe_becomes_a_registered_model_with_its_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = run(out, None, alias="challenger")
    assert code == 0 and "registered models:/smoke/1, now @challenger" in text
    assert (out / STORE).is_dir() and (out / "data.html").is_file()
    spec = load_package(out).spec
    assert spec.training["training_images"] == 1 and spec.training["validation"] == ["drawn_1"]
    history = json.loads((out / "history.json").read_text())
    assert [e["step"] for e in history] == [8, 16, 24]
    assert len(list((out / "overlays").glob("step_*.jpg"))) == 3
    found = resolve("models:/smoke@challenger")
    assert found.digest == load_package(out).digest
    client = init_store(store_uri())
    run_id = client.get_model_version("smoke", "1").run_id
    record = client.get_run(run_id)
    assert record.info.status == "FINISHED" and record.data.params["recipe.train.steps"] == "24"
    curve = client.get_metric_history(run_id, "val.iou.nucleus")
    assert [(m.step, round(m.value, 6)) for m in curve] == [(e["step"], round(e["iou"][1], 6)) for e in history]
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [1, 10, 20]
    assert {tag.value for i in record.inputs.dataset_inputs for tag in i.tags} == {"training", "validation"}
    digests = {i.dataset.digest for i in record.inputs.dataset_inputs}
    assert digests == {spec.training[f"{split}_fingerprint"][:36] for split in ("training", "validation")}
    files = {file.path for file in client.list_artifacts(run_id)}
    assert {"recipe.json", "history.json", "levels.json", "MODEL_CARD.md", "overlays"} <= files
    assert len(client.list_artifacts(run_id, "overlays")) == 3


def test_the_package_of_every_level_says_which_level_it_is(tmp_path: Path, store: Path) -> None:
    run(tmp_path, store, [*SMALL, "network.filters=[4, 4, 4]", "train.steps=8", "result.level=1"])
    for folder, level in ((tmp_path, 1), (tmp_path / "full", 2)):
        spec = load_package(folder).spec
        assert spec.architecture.last == level
        assert [row["level"] for row in spec.training["levels"] if row["kept"]] == [level]
        assert re.findall(r"\| (\d) \|.*this package", (folder / "MODEL_CARD.md").read_text()) == [str(level)]


def test_a_finished_training_is_left_alone(tmp_path: Path, store: Path) -> None:
    run(tmp_path, store)
    before = (tmp_path / "weights.safetensors").stat().st_mtime_ns, load_package(tmp_path).digest
    code, text = run(tmp_path, store)
    assert code == 0 and "finished already" in text and "models:/smoke/1" in text
    assert before == ((tmp_path / "weights.safetensors").stat().st_mtime_ns, load_package(tmp_path).digest)
    assert len(list_models()) == 1
    with pytest.raises(DataError, match="holds another training"):
        run(tmp_path, store, [*SMALL, "train.rate=0.5"])


def test_a_training_that_never_began_keeps_nobody_out(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        run(tmp_path, tmp_path / "mistyped.zarr")
    assert run(tmp_path, store, [*SMALL, "train.rate=0.5"], minutes=1e-6, register=False, record=False)[0] == TIME_UP
    with pytest.raises(DataError, match="holds another training"):
        run(tmp_path, store)


def test_figures_that_are_no_numbers_are_null_in_json() -> None:
    """Of a class that neither truth nor prediction has; json would write NaN, which other readers refuse."""
    text = json.dumps(plain([{"step": 2, "iou": (0.5, math.nan), "groups": {"a": (math.nan, 1.0)}}]), allow_nan=False)
    assert json.loads(text) == [{"step": 2, "iou": [0.5, None], "groups": {"a": [None, 1.0]}}]


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device 'tpu': choose auto, cpu or cuda"):
        run(tmp_path, None, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="device cuda: torch sees no GPU here"):
            run(tmp_path, None, device="cuda")
    assert not any(tmp_path.iterdir())


def test_a_head_without_a_gpu_packages_what_workers_with_gpus_trained(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, store, register=False)[0] == 0
    (tmp_path / SPEC).unlink()  # as the workers leave it
    monkeypatch.setattr("unetpp_workflows.training_ray.train_on_ray", lambda *_, **__: None)  # none has a GPU here
    assert run(tmp_path, store, register=False, workers=2, device="cuda")[0] == 0
    assert load_package(tmp_path).spec.training["validation"] == ["drawn_1"]


def test_more_workers_than_patches_are_refused_before_any_is_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch = 2 for 3 workers and 1 parts: give every worker a patch"):
        run(tmp_path, None, [*SMALL, "train.batch=2"], workers=3)
    assert not any(tmp_path.iterdir())


def test_a_change_that_is_not_for_these_images_is_refused_before_any_worker_is_started(
    tmp_path: Path, store: Path
) -> None:
    root = zarr.open_group(shutil.copytree(store, tmp_path / "wide.zarr"))
    facts: Any = root.attrs["unetpp_training"]
    root.attrs["unetpp_training"] = {**facts, "dtype": "uint16"}
    with pytest.raises(ConfigError, match=r"augment.stain = 0.1: stains are those of slides"):
        run(tmp_path / "out", tmp_path / "wide.zarr", [*SMALL, "train.augment.stain=0.1"], workers=2)


def test_a_folder_of_another_version_is_refused(tmp_path: Path, store: Path) -> None:
    for text in ("{", '{"name": "smoke", "was": 1}'):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(DataError, match=r"recipe\.json is damaged or of another version"):
            run(tmp_path, store)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="alias 'challenger' is for a registered model; leave it out, or register"):
        TrainOptions(alias="challenger", register=False)
    with pytest.raises(ConfigError, match=r"least = 3 of 2 worker\(s\): give at most as many as workers"):
        TrainOptions(workers=2, least=3)
    for minutes in (math.nan, -1.0):
        with pytest.raises(ConfigError, match=f"minutes = {minutes}: give a number of minutes"):
            TrainOptions(minutes=minutes)
    assert TrainOptions(workers=2, least=2, alias="challenger").register


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *((option, f"{option[0]} is for a training that runs here, and --export only writes one")
          for option in (["--workers", "2"], ["--least", "1"], ["--address", "auto"], ["--device", "cpu"],
                         ["--minutes", "0"], ["--alias", "challenger"])),
        (["--data", "."], "is what a store is made of, and --store"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(
    options: list[str], message: str, tmp_path: Path, store: Path
) -> None:
    command = ["train", "smoke", "-o", tmp_path / "out", "--store", store, "--export", tmp_path / "bare", *options]
    done = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and message in done.output
    assert not any(tmp_path.iterdir())


def test_a_level_that_the_network_has_not_is_refused_before_training(tmp_path: Path, store: Path) -> None:
    """... and corrected, the same output folder is taken."""
    for sets in (["result.level=5"], ["result.level=0"], ["network.kind='unet'", "result.level=1"]):
        with pytest.raises(ConfigError, match=r"result.level = \d: this network has"):
            run(tmp_path, store, [*SMALL, *sets])
    with pytest.raises(ConfigError, match=r"network.level = 1: a U-Net has one head, at level 2; leave it out"):
        run(tmp_path, store, [*SMALL, "network.filters=[4, 4, 4]", "network.kind='unet'", "network.level=1"])
    assert run(tmp_path, store, [*SMALL, "result.level=1"], register=False, record=False)[0] == 0


@pytest.mark.parametrize(
    ("role", "counts", "message"),
    [
        ("val", [1, 0], "no pixel of the validation images is 'nucleus'"),
        (
            "train",
            [1, 0],
            "all labelled pixels of the training images are 'background': there is nothing to tell apart",
        ),
        ("train", [0, 1], "all labelled pixels of the training images are 'nucleus'"),
    ],
)
def test_images_without_one_of_two_classes_are_refused(
    role: str, counts: list[int], message: str, tmp_path: Path, store: Path
) -> None:
    shutil.copytree(store, tmp_path / "empty.zarr")
    root = zarr.open_group(tmp_path / "empty.zarr")
    table: Any = root["counts"]
    split = [image["split"] for image in root.attrs["unetpp_training"]["images"]]  # type: ignore[index,call-overload]
    chosen = np.array([split[image] == role for image in np.asarray(root["image"][...])])  # type: ignore[index]
    values = np.asarray(table[...])
    values[chosen] = counts
    table[...] = values
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", tmp_path / "empty.zarr")


def test_patches_that_end_within_the_networks_sight_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", SMALL)
    reach = halo(architecture(recipe, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (96, 480, 3), np.uint8)
    labels = np.full((96, 480), 255, np.uint8)
    labels[40:56, 40:56], labels[40:56, 440:456], labels[:, 240] = pixels[40:56, 40:56, 0] % 2, 1, 0
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")

    def prepared(guard: int, context: int) -> Path:
        data = {"images": "image.png", "labels": "labels.png", "side": 16, "context": context, "guard": guard,
                "shares": {"train": 0.5, "val": 0.5}}  # fmt: skip
        classes = [section.model_dump() for section in recipe.classes]
        dataset = Dataset.model_validate({"data": data, "classes": classes})
        made = prepare(dataset, tmp_path, tmp_path / f"{guard}-{context}.zarr")
        assert made.facts is not None, made.errors
        return made.store

    rings = -(-reach // 16)
    with pytest.raises(DataError, match=f"{reach - 2} px between training and validation.*data.guard = {reach}"):
        run(tmp_path / "out", prepared(reach - 2, rings))
    with pytest.raises(DataError, match=f"lacks pixels around labels.*data.context = {rings}"):
        run(tmp_path / "out", prepared(reach, rings - 1))
    store = prepared(reach, rings)
    assert run(tmp_path / "out", store, [*SMALL, "train.steps=1"], register=False, record=False)[0] == 0
    for path, fits in ((store, True), (prepared(reach, rings - 1), False)):
        with nullcontext() if fits else pytest.raises(DataError, match="lacks pixels around labels"):
            check_fit(load_package(tmp_path / "out").spec, EvaluationData.open(path, "val"))
    # What an earlier version finished on such a store can still be registered.
    code, text = run(tmp_path / "out", prepared(reach, rings - 1), [*SMALL, "train.steps=1"])
    assert code == 0 and "finished already" in text and "registered models:/smoke/1" in text


def test_half_a_line_of_the_journal_is_skipped_and_swallows_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / PROGRESS)
    journal.write({"step": 1})
    with (tmp_path / PROGRESS).open("a") as file:
        file.write('{"step": 2, "lo')  # a process was killed here
    reader = Journal(tmp_path / PROGRESS)
    assert [entry["step"] for entry in reader.new()] == [1]
    journal.write({"step": 3})
    journal.write({"step": 4})
    assert [entry["step"] for entry in reader.new()] == [3, 4]
    assert [entry["step"] for entry in Journal(tmp_path / PROGRESS).new()] == [1, 3, 4]


COMMAND = """
import sys
from unetpp_workflows.cli import main
sys.exit(main())
"""


def start(output: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    sets = [part for setting in SMALL for part in ("--set", setting)]
    command = [sys.executable, "-c", COMMAND, "train", "smoke", "--output", str(output), "--store", str(store)]
    return subprocess.Popen(
        [*command, *sets, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ.copy()
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def steps_logged(output: Path) -> list[int]:
    return [entry["step"] for entry in Journal(output / PROGRESS).new() if "step" in entry]


def test_killed_and_rerun_is_one_run_with_one_curve(tmp_path: Path, store: Path) -> None:
    """`kill -9` between validations, rerun the command: the curve and the weights are an undisturbed run's.

    Until it is dead, no other one may train in its folder.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, store, register=False)
    process = start(killed, store, "--no-register")
    wait_until(lambda: 20 in steps_logged(killed), process)
    process.send_signal(signal.SIGSTOP)
    second = start(killed, store, "--no-register")
    text = second.communicate(timeout=240)[0]
    assert second.returncode == 1 and f"{killed} is in use by another run" in text
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "model.json").exists()
    again = start(killed, store, "--no-register")
    text = again.communicate(timeout=240)[0]
    assert again.returncode == 0, text
    assert losses(killed) == losses(whole)
    one, other = load_package(whole), load_package(killed)
    assert (one.folder / "weights.safetensors").read_bytes() == (other.folder / "weights.safetensors").read_bytes()
    client = init_store(store_uri())
    run_id = json.loads((killed / "mlflow.json").read_text())["run_id"]
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [1, 10, 20]
    assert [m.step for m in client.get_metric_history(run_id, "val.mean_loss")] == [8, 16, 24]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_time_up_is_an_exit_code_and_goes_on(tmp_path: Path, store: Path) -> None:
    code, text = run(tmp_path, store, minutes=1e-6, register=False)
    assert code == TIME_UP and "run the same command again" in text
    run_id = json.loads((tmp_path / "mlflow.json").read_text())["run_id"]
    assert init_store(store_uri()).get_run(run_id).info.status == "KILLED"
    assert run(tmp_path, store, register=False)[0] == 0 and len(losses(tmp_path)) == 3


def test_a_training_on_other_images_is_another_run(tmp_path: Path, store: Path) -> None:
    """The first one ended before its first checkpoint: nothing of it is left but its run."""
    output, file = tmp_path / "out", tmp_path / "out/mlflow.json"
    ids = []
    for _ in range(2):
        assert run(output, store, minutes=1e-6, register=False)[0] == TIME_UP
        ids.append(json.loads(file.read_text())["run_id"])
        (output / "checkpoint.pt").unlink()
    first = ids[0]
    assert ids == [first, first]
    other = export(store, tmp_path / "other")
    facts = json.loads((other / "store.json").read_text())
    facts["splits"]["train"]["fingerprint"] = "0" * 64
    (other / "store.json").write_text(json.dumps(facts))
    (output / PROGRESS).write_text('{"step": 1, "loss": 111.0}\n')
    code, text = run(output, other, register=False)
    second = json.loads(file.read_text())["run_id"]
    assert code == 0 and f"the MLflow run {first} is of other settings or images: {second} has what comes" in text
    client = init_store(store_uri())
    assert [m.step for m in client.get_metric_history(second, "val.mean_loss")] == [8, 16, 24]
    assert 111.0 not in [entry.get("loss") for entry in Journal(output / PROGRESS).new()], "of the other images"
    assert {found.dataset.digest for found in client.get_run(second).inputs.dataset_inputs} >= {"0" * 36}


@pytest.mark.parametrize("how", ["marked", "gone", "experiment"])
def test_a_run_that_was_deleted_meanwhile_costs_no_training(
    how: str, tmp_path: Path, store: Path, ready_home: Path
) -> None:
    assert run(tmp_path, store, minutes=1e-6)[0] == TIME_UP
    file, client = tmp_path / "mlflow.json", init_store(store_uri())
    before = json.loads(file.read_text())["run_id"]
    experiment = client.get_run(before).info.experiment_id
    if how == "marked":
        client.delete_run(before)
    elif how == "gone":
        file.write_text(json.dumps({"run_id": "0" * 32}))
        before = "0" * 32
    else:
        client.delete_experiment(experiment)
    code, text = run(tmp_path, store)
    assert load_package(tmp_path).spec.training["steps"] == 24
    if how == "experiment":
        assert code == 1 and f"mlflow experiments restore --experiment-id {experiment}" in text
        return
    after = json.loads(file.read_text())["run_id"]
    assert code == 0 and after != before and f"the MLflow run {before} was deleted: {after} has" in text
    assert client.get_run(after).info.status == "FINISHED"
    assert client.get_model_version("smoke", "1").run_id == after


def test_a_bare_machine_does_the_steps(tmp_path: Path, store: Path) -> None:
    """Exported, run in slices where nothing but torch and numpy imports, and finished here."""
    whole, out, bare = tmp_path / "whole", tmp_path / "out", tmp_path / "bare"
    run(whole, store, register=False)
    export_training("smoke", data=None, output=out, sets=SMALL, store=store, folder=bare, console=Console(quiet=True))
    absent = ["zarr", "pydantic", "ray", "mlflow", "scipy", "skimage", "openslide", "rasterio", "PIL", "safetensors"]
    script = (
        "import sys; sys.modules.update(dict.fromkeys(%r)); from unetpp.train.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", script % absent, str(bare), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    codes = []
    wrong = [*command[:-1], "gpu"], [*command[:3], str(out)]
    for arguments in ([*command, "--minutes", "0.0001"], command, *wrong):
        ended = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
        codes.append(ended.returncode)
    assert codes == [75, 0, 2, 2] and "training.json" in ended.stderr
    (bare / "checkpoint.pt").replace(out / "checkpoint.pt")
    assert run(out, store, register=False)[0] == 0
    assert losses(out) == losses(whole)
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_a_store_of_other_classes_is_refused(tmp_path: Path, store: Path) -> None:
    sets = [*SMALL, "classes=[{value=0, name='a', color=[0,0,0]}, {value=1, name='b', color=[0,0,0]}, "
            "{value=2, name='c', color=[0,0,0]}]"]  # fmt: skip
    with pytest.raises(DataError, match="has the classes background, nucleus, the recipe a, b, c"):
        run(tmp_path, store, sets)
    # As many, but others: what is learnt would be called by the wrong names.
    other = [*SMALL, "classes=[{name='background', color=[0,0,0], background=true}, {name='gland', color=[0,0,0]}]"]
    with pytest.raises(DataError, match="has the classes background, nucleus, the recipe background, gland"):
        run(tmp_path, store, other)
    with pytest.raises(StoreError, match="no training store"):
        run(tmp_path / "other", tmp_path / "nothing.zarr")


def test_without_data_it_says_how_to_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNETPP_DATA", raising=False)
    console = Console(file=io.StringIO())
    with pytest.raises(DataError, match="--data"):
        run_training("nuclei", data=None, output=tmp_path / "a", console=console)
    with pytest.raises(DataError, match="does not exist"):
        run_training("nuclei", data=tmp_path / "none", output=tmp_path / "b", console=console)


def test_a_store_that_does_not_answer_costs_no_training(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, text = run(tmp_path, store, tracking_uri="http://127.0.0.1:9")
    assert code == 1 and text.count("not recorded in MLflow") == 1
    assert load_package(tmp_path).spec.training["best_step"] > 0


def test_a_store_that_falls_silent_is_left_alone_until_the_end(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs takes minutes of every call: of 300 in a training, hours."""
    asked = []

    def hang(self: TrainingRun, *_: Any) -> None:
        asked.append(self.id)
        time.sleep(0.1)
        raise RegistryError("no answer")

    for name in ("step", "epoch"):
        monkeypatch.setattr(TrainingRun, name, hang)
    monkeypatch.setattr(mlflow_store, "_SOON_S", 0.05)
    monkeypatch.setattr(mlflow_store, "_PAUSES", 10_000)
    code, text = run(tmp_path, store, register=False)
    assert code == 1 and text.count("not recorded in MLflow: no answer") == 1 and len(asked) == 1
    assert init_store(store_uri()).get_run(asked[0]).info.status == "FINISHED", "the end is told all the same"


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(store: Path, small_disk: Callable[[int], Path]) -> None:
    output = small_disk(416) / "out"  # no room for the second picture beside a checkpoint
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device; free disk space") as caught:
        run(output, store, record=False, register=False)
    assert "\n" not in str(caught.value) and not (output / "model.json").exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(output.parent)], check=True)
    assert run(output, store, record=False, register=False)[0] == 0
    assert load_package(output).spec.training["steps"] == 24 and len(losses(output)) == 3


def test_a_full_disk_of_the_registry_costs_no_training(
    tmp_path: Path, store: Path, small_disk: Callable[[int], Path], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(4096)
    monkeypatch.setenv("UNETPP_HOME", str(disk))
    shutil.copyfile(empty_store, disk / "mlflow.db")
    ballast = fill(disk, 120)  # enough for the run, not for its pictures
    code, text = run(tmp_path / "out", store)
    assert code == 1 and text.count("not recorded in MLflow") == 1
    assert "No space left on device; free disk space and run the same command again" in text
    digest = load_package(tmp_path / "out").digest
    ballast.unlink()
    code, text = run(tmp_path / "out", store)
    assert code == 0 and "registered models:/smoke/1" in text and resolve("models:/smoke/1").digest == digest


@pytest.mark.timeout(600)  # Ray gives its processes a lower priority: on a busy machine they start slowly
def test_two_workers_on_ray_survive_a_kill(tmp_path: Path, store: Path) -> None:
    """One of two worker processes dies in the middle: Ray starts the group anew, from the last checkpoint."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    run(alone, store, register=False)
    process = start(both, store, "--no-register", "--workers", "2")
    wait_until(lambda: 10 in steps_logged(both), process, seconds=300)
    workers = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    assert len(workers) == 2
    workers[-1].kill()
    text = process.communicate(timeout=280)[0]
    assert process.returncode == 0, text
    assert [step for step, _ in losses(both)] == [8, 16, 24]
    for (_, one), (_, two) in zip(losses(alone), losses(both), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert load_package(both).spec.metrics["mean_iou"] == pytest.approx(
        load_package(alone).spec.metrics["mean_iou"], abs=0.02
    )
