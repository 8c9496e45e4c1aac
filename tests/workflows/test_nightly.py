"""Three nights of an archive, checked item by item: ledger, registry, reports, alerts; and nights that meet."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from tests.workflows.conftest import INK, PAPER, SMUDGE
from tests.workflows.test_gates import CARD, FACTS
from tests.workflows.test_metrics import ending
from unetpp_workflows.cli import app
from unetpp_workflows.lease import Lease
from unetpp_workflows.ledger import Ledger, sync
from unetpp_workflows.mlflow_store import init_store, store_uri
from unetpp_workflows.pipeline import find_sources
from unetpp_workflows.promotion import history
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.registry import aliases_of, register_package
from unetpp_workflows.tracking import SEGMENTATION


@pytest.fixture(autouse=True)
def no_bench(known_speed: dict[str, Any]) -> None:
    """Speed has a test of its own."""


@pytest.fixture
def registered(ink_variant: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Register an ink network with a threshold (112 is perfect, 60 misses the smudges) and return its version."""

    def register(threshold: int, alias: str) -> str:
        folder = ink_variant(tmp_path / f"p{threshold}", threshold, CARD, training=FACTS, metrics={"iou": 1})
        return register_package(folder, "ink", alias=alias)

    return register


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a real web server on this machine was sent."""
    found: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("UNETPP_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret-token")
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in ("a", "b"):
        draw(folder / f"{name}.png", 40)
    return folder


@pytest.fixture
def config(tmp_path: Path, archive: Path, ink_store: Callable[..., Path]) -> Path:
    (tmp_path / "gates.toml").write_text("calibration = { ece = 1 }")
    file = tmp_path / "nightly.toml"
    file.write_text(
        f'archive = ["{archive}"]\noutput = "{tmp_path / "out"}"\nmodel = "ink"\n'
        '[segment]\ntiling = { core = 64 }\nengine = { name = "torch" }\n'
        f'[promotion]\ndata = "{ink_store(0, 20, 50, 100, 100, 300)}"\ngates = "{tmp_path / "gates.toml"}"\n'
    )
    return file


def draw(file: Path, smudges: int) -> None:
    pixels = np.full((60, 80, 3), PAPER, np.uint8)
    pixels[5:15, 5:15] = INK
    pixels.reshape(-1, 3)[30 * 80 : 30 * 80 + smudges] = SMUDGE
    Image.fromarray(pixels).save(file)


def run(config: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["nightly", str(config), *options], env={"COLUMNS": "200"})


def nights(output: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((output / "nightly").glob("2*.json"))]


def ledger(output: Path) -> dict[str, dict[str, Any]]:
    images = json.loads((output / "nightly" / "ledger.json").read_text())["images"]
    return {Path(uri).name: entry for uri, entry in images.items()}


def ink(output: Path, name: str) -> int:
    """Return the pixels of ink that an image's record says."""
    record = ImageRecord.read(output / name)
    assert record is not None and record.figures
    return int(next(entry["px"] for entry in record.figures["classes"] if entry["name"] == "ink"))


def aliases() -> dict[str, str]:
    return aliases_of(init_store(store_uri()), store_uri(), "ink")


def segmentations() -> int:
    client = init_store(store_uri())
    found = client.get_experiment_by_name(SEGMENTATION)
    return len(client.search_runs([found.experiment_id])) if found else 0


def test_three_nights(
    config: Path, archive: Path, registered: Callable[..., str], alerts: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    registered(60, "champion")

    # The first night: two images, a champion that misses smudges, no challenger.
    assert run(config).exit_code == 0, run(config).output
    (first,) = nights(output)
    assert first["archive"] == {"new": ["a", "b"], "changed": [], "again": [], "removed": [], "unchanged": 0}
    assert {name: image["status"] for name, image in first["images"].items()} == {"a": "done", "b": "done"}
    assert first["promotion"] == {"outcome": "none waits", "champion": "1"} and first["exit_code"] == 0
    assert ink(output, "a") == ink(output, "b") == 100 and alerts == []

    # The second: one new, one changed, one bad slide, and a challenger that sees smudges.
    draw(archive / "c.png", 70)
    draw(archive / "b.png", 50)
    (archive / "bad.png").write_bytes(b"no image")
    registered(112, "challenger")
    result = run(config)
    assert result.exit_code == 1 and "bad.png" in result.output and "models:/ink/2 is now @champion" in result.output
    second = nights(output)[1]
    assert second["archive"] == {"new": ["bad", "c"], "changed": ["b"], "again": [], "removed": [], "unchanged": 1}
    assert {name: image["status"] for name, image in second["images"].items()} == {
        "b": "done", "bad": "failed", "c": "done"
    }  # fmt: skip
    assert second["champion"] == "models:/ink/1" and ink(output, "c") == 100  # it was champion when the night began
    assert second["promotion"]["outcome"] == "promoted" and aliases() == {"champion": "2", "previous": "1"}
    (alert,) = alerts
    assert "1 problem" in alert["text"] and "bad.png" in alert["details"]["problems"][0]

    # The third: one removed, one new, the bad slide still bad, a worse challenger. Old results stay as they are.
    (archive / "a.png").unlink()
    draw(archive / "d.png", 30)
    registered(61, "challenger")
    before = (output / "c" / "record.json").read_bytes()
    result = run(config)
    assert result.exit_code == 1 and "models:/ink/3 was not promoted" in result.output
    third = nights(output)[2]
    assert third["archive"] == {"new": ["d"], "changed": [], "again": ["bad"], "removed": ["a"], "unchanged": 2}
    assert third["champion"] == "models:/ink/2" and ink(output, "d") == 130
    assert third["promotion"]["outcome"] == "refused" and "non-inferiority" in third["promotion"]["failed"][0]
    assert aliases() == {"champion": "2", "previous": "1", "challenger": "3"} and len(alerts) == 2
    assert (output / "c" / "record.json").read_bytes() == before and ink(output, "a") == 100, "nothing done is lost"

    entries = ledger(output)
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "a.png": "removed", "b.png": "done", "bad.png": "failed", "c.png": "done", "d.png": "done"
    }  # fmt: skip
    assert {name: entry["model"] for name, entry in entries.items()} == {
        "a.png": "models:/ink/1", "b.png": "models:/ink/1", "bad.png": None, "c.png": "models:/ink/1",
        "d.png": "models:/ink/2",
    }  # fmt: skip
    assert entries["a.png"]["gone"] and not entries["b.png"]["gone"]
    assert [(d.outcome, d.version) for d in history("ink")] == [("refused", "3"), ("promoted", "2")]
    runs = segmentations()
    assert runs == 5  # a, b, b again, c, d
    page = max((output / "nightly").glob("*.html")).read_text()
    assert "bad.png" in page and "refused" in page and "removed" in page

    # The same night again: nothing is doubled, and the bad slide is still a failure.
    again = run(config)
    assert again.exit_code == 1 and "refused before" in again.output
    assert len(history("ink")) == 2 and segmentations() == runs
    assert nights(output)[3]["archive"] | {"again": []} == {
        "new": [], "changed": [], "again": [], "removed": [], "unchanged": 3
    }  # fmt: skip
    (archive / "bad.png").unlink()
    assert run(config).exit_code == 0 and len(alerts) == 3
    assert ledger(output)["bad.png"]["status"] == "removed"
    draw(archive / "bad.png", 10)
    assert run(config).exit_code == 0 and ink(output, "bad") == 110
    assert ledger(output)["bad.png"]["gone"] is None


def test_a_record_that_cannot_be_read_is_told_and_the_others_are_done(
    config: Path, archive: Path, registered: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    registered(60, "champion")
    assert run(config).exit_code == 0
    (output / "a/record.json").write_text('{"format": 1}')
    draw(archive / "c.png", 70)
    (archive / "bad.png").write_bytes(b"no image")
    result = run(config)
    assert result.exit_code == 1
    last = nights(output)[-1]
    assert last["archive"] == {"new": ["bad", "c"], "changed": [], "again": ["a"], "removed": [], "unchanged": 1}
    found = {name: image["status"] for name, image in last["images"].items()}
    assert found == {"a": "failed", "bad": "failed", "c": "done"}
    assert any("a/record.json is damaged" in line for line in last["problems"])
    assert any("bad.png" in line for line in last["problems"])


def test_a_refusal_is_of_weights_and_not_of_version_numbers(
    config: Path, registered: Callable[..., str], tmp_path: Path
) -> None:
    """A registry that was made anew counts from 1 again: its second version is another model."""
    registered(112, "champion")
    registered(60, "challenger")
    assert run(config).exit_code == 0
    assert "models:/ink/2 was refused before" in run(config).output
    init_store(store_uri()).delete_registered_model("ink")
    registered(60, "champion")
    registered(112, "challenger")
    assert "models:/ink/2 is now @champion" in run(config).output


def test_a_refusal_for_a_busy_machine_is_none_of_the_next_nights(
    config: Path, registered: Callable[..., str], tmp_path: Path
) -> None:
    registered(60, "champion")
    registered(112, "challenger")
    for least, told in ((1e9, "was not promoted"), (1e9, "was not promoted"), (1e-9, "is now @champion")):
        (tmp_path / "gates.toml").write_text(f"calibration = {{ ece = 1 }}\nspeed = {{ least = {least} }}")
        assert f"models:/ink/2 {told}" in run(config).output
    failed = [night["promotion"].get("failed") for night in nights(tmp_path / "out")]
    assert [[line.partition(",")[0] for line in lines] for lines in failed] == [["speed"], ["speed"], []]


def test_a_challenger_that_lacks_shadow_runs_is_judged_again_when_it_has_them(
    config: Path, archive: Path, registered: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "gates.toml").write_text("calibration = { ece = 1 }\nshadow = { agreement = 0.5, images = 2 }")
    registered(60, "champion")
    registered(112, "challenger")
    assert run(config).exit_code == 0
    (failed,) = nights(tmp_path / "out")[0]["promotion"]["failed"]
    assert failed.startswith("shadow, images compared")
    assert "was refused before" in run(config).output and aliases()["champion"] == "1"
    shadow = ["--shadow", "models:/ink@challenger", "--shadow-share", "1", "--engine", "torch"]
    beside = ["segment", str(archive), "-m", "models:/ink@champion", "-o", str(tmp_path / "beside"), *shadow]
    assert CliRunner().invoke(app, beside).exit_code == 0
    assert run(config).exit_code == 0 and aliases() == {"champion": "2", "previous": "1"}


def test_a_night_that_meets_another_says_so_and_leaves(
    config: Path, registered: Callable[..., str], alerts: list[dict[str, Any]], tmp_path: Path
) -> None:
    registered(60, "champion")
    folder = tmp_path / "out" / "nightly"
    folder.mkdir(parents=True)
    with Lease(folder):
        result = run(config)
    assert result.exit_code == 75 and "is being written by process" in result.output
    assert alerts == [] and not list(folder.glob("*.json"))
    assert run(config).exit_code == 0


def test_a_step_that_fails_does_not_keep_the_others_from_running(
    config: Path, registered: Callable[..., str], alerts: list[dict[str, Any]], tmp_path: Path
) -> None:
    registered(112, "challenger")  # no champion: nothing can segment, but the challenger can become it
    result = run(config)
    assert result.exit_code == 1 and "segment: model 'ink' has no alias 'champion'" in result.output
    assert aliases() == {"champion": "1"} and len(alerts) == 1
    second = run(config)
    assert second.exit_code == 0 and ink(tmp_path / "out", "a") == 140


def test_an_archive_that_cannot_be_listed_is_not_one_that_was_emptied(
    config: Path, archive: Path, registered: Callable[..., str], tmp_path: Path
) -> None:
    registered(60, "champion")
    assert run(config).exit_code == 0
    archive.rename(tmp_path / "away")
    archive.mkdir()
    assert run(config).exit_code == 1
    assert {entry["status"] for entry in ledger(tmp_path / "out").values()} == {"done"}
    archive.rmdir()
    (tmp_path / "away").rename(archive)
    assert run(config).exit_code == 0


def test_an_alert_that_cannot_be_delivered_is_said_without_its_secret(
    config: Path, archive: Path, registered: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(60, "champion")
    (archive / "bad.png").write_bytes(b"no image")
    for url, message in (
        ("http://127.0.0.1:9/secret-token", "did not reach 127.0.0.1"),
        ("http://example.com/secret-token", "https only"),
        ("file:///etc/secret-token", "https only"),
    ):
        monkeypatch.setenv("UNETPP_WEBHOOK", url)
        result = run(config)
        assert result.exit_code == 1 and message in result.output and "secret-token" not in result.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("modle = 'ink'", "did you mean 'model'"),
        ("segment.model = 'ink'", "uses the champion"),
        ("segment.shadow.model = 'models:/ink@challenger'", "a night runs no shadow"),
        ("model = 'models:/ink@champion'", "model"),
        ("archive = []", "archive"),
    ],
)
def test_a_wrong_configuration_is_usage(config: Path, line: str, message: str) -> None:
    result = run(config, "--set", line)
    assert result.exit_code == 2 and message in result.output


@pytest.fixture
def quiet(tmp_path: Path, archive: Path) -> Path:
    """A night of an archive whose images are done: nothing to segment, nothing to judge, no registry needed."""
    output = tmp_path / "out"
    known = Ledger()
    sources, _ = find_sources([archive], output)
    sync(known, sources, complete=True)
    for source in sources:
        source.folder.mkdir(parents=True)
        ImageRecord(name=source.name, status="done").write(source.folder)
        known.settle(source.uri, "done", None, "2026-01-01")
    (output / "nightly").mkdir()
    known.save(output / "nightly")
    file = tmp_path / "quiet.toml"
    file.write_text(
        f'archive = ["{archive}"]\noutput = "{output}"\nmodel = "ink"\n'
        f'[segment]\nmetrics = {{ file = "{tmp_path / "night.prom"}" }}\n'
    )
    return file


def test_a_quiet_night_has_ended_too(quiet: Path, alerts: list[dict[str, Any]], tmp_path: Path) -> None:
    for _ in range(2):
        began = time.time()
        result = run(quiet)
        assert result.exit_code == 0 and "0 new, 0 changed, 0 again, 0 removed, 2 unchanged" in result.output
        code, finish = ending(tmp_path / "night.prom")
        assert code == 0 and began <= finish
    assert alerts == []


def test_a_night_is_due_again_after_a_day_or_as_it_says(quiet: Path, tmp_path: Path) -> None:
    for line, seconds in (("", 86400), ("every = 168, ", 168 * 3600)):
        quiet.write_text(quiet.read_text().replace("metrics = { ", "metrics = { " + line))
        assert run(quiet).exit_code == 0
        assert (
            f'unetpp_run_every_seconds{{output="{tmp_path / "out"}"}} {seconds:.1f}\n'
            in (tmp_path / "night.prom").read_text()
        )


def _tear_the_ledger(output: Path) -> None:
    file = output / "nightly/ledger.json"
    file.write_bytes(file.read_bytes()[:100])


def _hide_the_ledger(output: Path) -> None:
    (output / "nightly/ledger.json").unlink()
    (output / "nightly/ledger.json").mkdir()


def _remove_the_output(output: Path) -> None:
    shutil.rmtree(output)
    output.touch()


def test_what_nobody_thought_of_is_told(
    quiet: Path, alerts: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetpp_workflows.ledger.ImageRecord.read", lambda _: 1 / 0)
    result = run(quiet)
    assert result.exit_code == 1 and "failed: sync: unexpected ZeroDivisionError: " in result.output
    assert alerts[0]["details"]["problems"][0].startswith("sync: unexpected ZeroDivisionError: ")
    assert ending(tmp_path / "night.prom")[0] == 1


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_tear_the_ledger, "ledger: .*ledger.json cannot be read"),
        (_hide_the_ledger, "ledger: .*Is a directory"),
        (_remove_the_output, "night: .*choose an output folder"),
    ],
)
def test_whatever_goes_wrong_is_told(
    quiet: Path, alerts: list[dict[str, Any]], tmp_path: Path, damage: Callable[[Path], None], problem: str
) -> None:
    damage(tmp_path / "out")
    result = run(quiet)
    assert result.exit_code == 1 and re.search(f"failed: {problem}", result.output), result.output
    [alert] = alerts
    assert re.match(problem, alert["details"]["problems"][0])
    assert ending(tmp_path / "night.prom")[0] == 1
    if damage is _tear_the_ledger:
        [night] = nights(tmp_path / "out")
        assert night["exit_code"] == 1 and len(night["problems"]) == 1
        assert (tmp_path / "out/nightly/ledger.json").stat().st_size == 100, "what may be mended is left"


def test_an_alert_has_counts_and_the_first_problems(quiet: Path, alerts: list[dict[str, Any]], tmp_path: Path) -> None:
    empty = [tmp_path / f"empty-{index:02d}" for index in range(30)]
    for folder in empty:
        folder.mkdir()
    archives = json.dumps([str(tmp_path / "archive"), *map(str, empty)])
    assert run(quiet, "--set", f"archive={archives}").exit_code == 1
    [alert] = alerts
    assert "30 problem(s)" in alert["text"]
    details = alert["details"]
    assert [Path(line.partition(":")[0]) for line in details["problems"]] == empty[:20]
    assert details["archive"] == {"new": 0, "changed": 0, "again": 0, "removed": 0, "unchanged": 2}
    assert len(nights(tmp_path / "out")[0]["problems"]) == 30


def test_an_archive_that_is_not_mounted_was_not_removed(quiet: Path, archive: Path, tmp_path: Path) -> None:
    assert run(quiet).exit_code == 0
    archive.rename(tmp_path / "away")
    night = run(quiet)
    assert night.exit_code == 1 and f"{archive}: no such file or folder; mount it" in night.stdout
    assert {name: entry["gone"] for name, entry in ledger(tmp_path / "out").items()} == {"a.png": None, "b.png": None}
    assert not (tmp_path / "out/archive").exists()
    (tmp_path / "away").rename(archive)
    assert run(quiet).exit_code == 0
    assert nights(tmp_path / "out")[-1]["archive"]["unchanged"] == 2


@pytest.mark.parametrize(
    ("sent", "code", "problem"),
    [
        (signal.SIGINT, 130, "night: ended by KeyboardInterrupt; the next one continues it"),
        (signal.SIGTERM, 130, "night: ended by KeyboardInterrupt; the next one continues it"),
        (signal.SIGKILL, -9, "night: it was killed, memory was full, or the head of its Ray cluster is gone; "),
    ],
)
def test_a_night_that_is_ended_is_told(
    sent: signal.Signals, code: int, problem: str, quiet: Path, alerts: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The ledger is a pipe into which nobody writes, so that the night waits for its signal."""
    for file in (tmp_path / "out/nightly").glob("*.json"):
        file.unlink()
    os.mkfifo(tmp_path / "out/nightly/ledger.json")
    command = [sys.executable, "-m", "unetpp_workflows", "nightly", str(quiet)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        writer = os.open(tmp_path / "out/nightly/ledger.json", os.O_WRONLY)  # waits until the night reads the ledger
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
        os.close(writer)
    assert process.returncode == code
    [alert] = alerts  # whoever sent it has ended: the pipes are closed
    [told] = alert["details"]["problems"]
    assert told.startswith(problem)
    if sent != signal.SIGKILL:
        assert "run the same command again" in errors and ending(tmp_path / "night.prom")[0] == 1
