"""Promotions against a real registry: aliases, records, kills between the steps, two at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.workflows.test_gates import CARD, FACTS
from unetpp.errors import ConfigError, ModelNotFoundError, PromotionError
from unetpp_workflows import promotion
from unetpp_workflows.cli import app
from unetpp_workflows.gates import Gates
from unetpp_workflows.mlflow_store import import_mlflow, init_store, store_uri
from unetpp_workflows.promotion import delete_version, history, promote, rollback
from unetpp_workflows.registry import aliases_of, list_models, register_package

# The network of the tests is right but never sure: that is not what is tested here.
GATES = Gates.model_validate({"calibration": {"ece": 1}})


@pytest.fixture(autouse=True)
def no_bench(known_speed: dict[str, Any], ready_home: Path) -> None:
    """Speed has a test of its own, and so has a store's first use."""


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    file = tmp_path / "gates.toml"
    file.write_text("calibration = { ece = 1 }")
    return file


@pytest.fixture
def store(ink_store: Callable[..., Path]) -> Path:
    return ink_store(0, 20, 50, 100, 100, 300)


@pytest.fixture
def registered(ink_variant: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Register an ink network with a threshold (112 is perfect, 60 misses the smudges) and return its version."""

    def register(threshold: int, **options: Any) -> str:
        folder = ink_variant(tmp_path / f"p{threshold}", threshold, CARD, training=FACTS, metrics={"iou": 1})
        return register_package(folder, "ink", **options)

    return register


def aliases() -> dict[str, str]:
    return aliases_of(init_store(store_uri()), store_uri(), "ink")


def run(*command: object) -> Result:
    return CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})


def test_promote_refuse_roll_back_and_read_the_history(
    store: Path, registered: Callable[..., str], gates: Path, tmp_path: Path
) -> None:
    registered(60, alias="challenger")
    first = run("promote", "ink", "--data", store, "--gates", gates)
    assert first.exit_code == 0, first.output
    assert "first: IoU over the best constant answer" in first.output and "before: none" in first.output
    assert aliases() == {"champion": "1"}
    better = registered(112)  # no alias: the newest version is meant
    second = run("promote", "ink", "--data", store, "--gates", gates)
    assert second.exit_code == 0 and "models:/ink/2 is now @champion; before: version 1" in second.output
    assert aliases() == {"champion": better, "previous": "1"}
    worse = registered(61, alias="challenger")
    third = run("promote", "ink", "--data", store, "--gates", gates)
    assert third.exit_code == 1 and re.search(r"non-inferiority +-0\.\d+.*failed by 0\.\d+", third.output)
    assert "models:/ink/3 was not promoted: 1 gate(s) failed" in third.output
    assert aliases() == {"champion": "2", "previous": "1", "challenger": worse}
    assert run("promote", "ink", "--version", "2", "--data", store, "--gates", gates).output.startswith(
        "models:/ink/2 is @champion already"
    )
    back = run("rollback", "ink")
    assert back.exit_code == 0 and "models:/ink/1 is @champion again; before: version 2" in back.output
    assert aliases() == {"champion": "1", "previous": "2", "challenger": "3"}
    found = history("ink")
    assert [(d.outcome, d.version, d.champion) for d in found] == [
        ("rolled back", "1", "2"), ("refused", "3", "2"), ("promoted", "2", "1"), ("promoted", "1", None)
    ]  # fmt: skip
    assert "refused" in run("models", "history", "ink").output
    client = init_store(store_uri())
    refused = client.get_run(found[1].run)
    assert refused.info.status == "FINISHED" and refused.data.metrics["gate.non-inferiority"] < 0
    assert len(refused.inputs.model_inputs) == 2 and len(refused.inputs.dataset_inputs) == 1
    evidence = json.loads(Path(client.download_artifacts(found[1].run, "decision.json", str(tmp_path))).read_text())
    assert evidence["settings"]["non_inferiority"]["margin"] == 0.01
    for side, number in (("champion", "2"), ("challenger", "3")):
        assert client.get_run(evidence["evaluations"][side]).data.tags["unetpp.model.version"] == number
    page = Path(client.download_artifacts(found[1].run, "decision.html", str(tmp_path))).read_text()
    assert "failed by" in page and "<svg" in page and not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    tags = client.get_model_version("ink", "1").tags
    assert [text.split(" by ")[0] for name, text in sorted(tags.items()) if name.startswith("unetpp.decision.")] == [
        "promoted", "rolled back"
    ]  # fmt: skip


def test_a_promotion_that_only_could_not_tidy_up_is_done(
    store: Path, registered: Callable[..., str], gates: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The server goes when the champion has moved and the alias `challenger` has not."""
    registered(112, alias="challenger")
    client = type(init_store(store_uri()))

    def gone(*_: Any) -> None:
        raise import_mlflow().exceptions.MlflowException("the server is gone")

    monkeypatch.setattr(client, "delete_registered_model_alias", gone)
    assert run("promote", "ink", "--data", store, "--gates", gates).exit_code == 0
    assert aliases() == {"champion": "1", "challenger": "1"} and "may still be @challenger" in caplog.text
    assert [(d.outcome, d.version) for d in history("ink")] == [("promoted", "1")]


def test_a_dry_run_decides_nothing(store: Path, registered: Callable[..., str], gates: Path, tmp_path: Path) -> None:
    registered(60)
    limits = tmp_path / "limits.toml"
    limits.write_text("calibration = { ece = 1 }\nfloors = { classes = { ink = 0.9 } }")
    refused = run("promote", "ink", "--data", store, "--gates", limits, "--dry-run")
    assert refused.exit_code == 1 and "would not be promoted" in refused.output and "failed by 0.3872" in refused.output
    fine = run("promote", "ink", "--data", store, "--gates", gates, "--dry-run")
    assert fine.exit_code == 0 and "would become @champion" in fine.output
    assert aliases() == {} and history("ink") == []
    assert run("promote", "blood", "--data", store, "--gates", gates).exit_code == 2


@pytest.mark.parametrize(
    ("floors", "message"),
    [({"classes": {"blood": 0.1}}, "floors.classes: the images have no 'blood'; they have paper, ink"),
     ({"strata": {"z": 0.1}}, "floors.strata: the images have no 'z'; they have a, b, c, d, e, f")],
)  # fmt: skip
def test_floors_of_what_is_not_there_are_refused_before_anything_is_measured(
    floors: dict[str, Any], message: str, store: Path, registered: Callable[..., str]
) -> None:
    registered(60)
    judged: list[None] = []
    gates = Gates.model_validate({"floors": floors})
    with pytest.raises(ConfigError, match=message):
        promote("ink", store, gates=gates, on_image=lambda: judged.append(None))
    assert not judged and history("ink") == []
    with pytest.raises(ConfigError, match=message):
        promote("ink", store, gates=gates, dry_run=True)
    off = gates.model_copy(update={"off": ("floors", "calibration")})
    assert promote("ink", store, gates=off).outcome == "promoted"


def test_a_version_with_an_alias_is_not_deleted(store: Path, registered: Callable[..., str]) -> None:
    registered(60, alias="champion")
    registered(112, alias="trial")
    with pytest.raises(PromotionError, match="models:/ink/1 is @champion and was not deleted"):
        delete_version("ink", "1")
    registered(61)
    gone = run("models", "delete", "ink", "3")
    assert gone.exit_code == 0 and [row.version for row in list_models()] == ["2", "1"]
    assert run("models", "delete", "ink", "2").exit_code == 1
    with pytest.raises(ModelNotFoundError, match="no version 3"):
        rollback("ink", to="3")
    assert [d.outcome for d in history("ink")] == ["deleted"]
    by_hand = run("models", "alias", "ink", "2", "champion")
    assert by_hand.exit_code == 0 and "by hand and without gates; before: version 1" in by_hand.output
    assert aliases() == {"champion": "2", "previous": "1", "trial": "2"}
    assert history("ink")[0].outcome == "set by hand"


DIE = """
import os, signal, sys
from pathlib import Path
from unetpp_workflows import speed
from unetpp_workflows.gates import Gates
from unetpp_workflows.promotion import promote
from mlflow import MlflowClient
speed.measure_speed = lambda folder, tta="none", precision="auto": {
    "mpx_per_second": 2.0, "peak_mb": 100.0, "engine": "e", "precision": "p", "device": "cpu", "tile": 512}
left = int(sys.argv[2])
move = MlflowClient.set_registered_model_alias
def dying(self, *args):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return move(self, *args)
MlflowClient.set_registered_model_alias = dying
promote("ink", Path(sys.argv[1]), gates=Gates.model_validate({"calibration": {"ece": 1}}))
"""


@pytest.mark.parametrize("moved", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_between_the_aliases_there_is_always_a_champion(
    moved: int, store: Path, registered: Callable[..., str]
) -> None:
    registered(60, alias="champion")
    registered(112, alias="challenger")
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(store), str(moved)],
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -9
    assert aliases()["champion"] == "1" and ("previous" in aliases()) == bool(moved)
    assert [d.outcome for d in history("ink")] == ["promoted, not done yet"]
    client = init_store(store_uri())
    with pytest.raises(PromotionError, match="is changing the aliases"):
        promote("ink", store, gates=GATES)
    client.set_registered_model_tag("ink.unetpp-lock.1", "unetpp.lock.expires", "0")  # as if its time were over
    assert promote("ink", store, gates=GATES).outcome == "promoted"
    assert aliases() == {"champion": "2", "previous": "1"}


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    store: Path, registered: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one promotes and finishes while this one is measuring; and while this one holds the lock."""
    registered(60, alias="champion")
    registered(112)
    registered(111)
    judge = promotion.judge

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(promotion, "judge", judge)
        assert promote("ink", store, version="3", gates=GATES).outcome == "promoted"
        return judge(*args)

    monkeypatch.setattr(promotion, "judge", meanwhile)
    with pytest.raises(PromotionError, match="was version 1 when this began and is now 3; run the command again"):
        promote("ink", store, version="2", gates=GATES)
    assert aliases() == {"champion": "3", "previous": "1"}
    move = promotion._move

    def during(*args: Any) -> None:
        monkeypatch.setattr(promotion, "_move", move)
        with pytest.raises(PromotionError, match="is changing the aliases of 'ink'"):
            rollback("ink")
        move(*args)

    monkeypatch.setattr(promotion, "_move", during)
    assert promote("ink", store, version="2", gates=GATES).outcome == "promoted"
    assert aliases() == {"champion": "2", "previous": "3"}
