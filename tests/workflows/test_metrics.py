"""What the metrics file says of how a run ended; what a run counts is tested with the dashboard."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.disk import fill
from unetpp.errors import ConfigError, EngineError, OutputError
from unetpp_workflows.config import MetricsConfig
from unetpp_workflows.metrics import exported, write_end


def ending(file: Path) -> tuple[float, float]:
    """Return exit code and finish of a metrics file."""
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    return found["unetpp_run_exit_code"], found["unetpp_run_finish_timestamp_seconds"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("no GPU"), 1),
        (ConfigError("a wrong value"), 2),
        (ZeroDivisionError("surprise"), 1),
        (MemoryError(), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(1), 1),
    ],
)
def test_a_run_that_breaks_off_has_ended_and_failed(tmp_path: Path, error: BaseException, code: int) -> None:
    config = MetricsConfig(file=tmp_path / "unetpp.prom")
    began = time.time()
    with pytest.raises(type(error)), exported(config, tmp_path):
        assert ending(tmp_path / "unetpp.prom") == (-1, 0)
        raise error
    found, finish = ending(tmp_path / "unetpp.prom")
    assert found == code and began <= finish <= time.time()


def test_a_run_without_its_port_has_ended_and_failed(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = MetricsConfig(file=tmp_path / "unetpp.prom", port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="choose another port"), exported(config, tmp_path):
            pass
    assert ending(tmp_path / "unetpp.prom")[0] == 2


def test_a_file_without_room_ends_no_run(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    disk = small_disk(64)
    with exported(MetricsConfig(file=disk / "unetpp.prom"), tmp_path) as metrics:
        ballast = fill(disk)
        metrics.update()
        assert "No space left on device; free disk space" in str(metrics.fault)
        ballast.unlink()
        metrics.finished({}, 0)
        metrics.update()
        assert metrics.fault is None
        fill(disk)
    assert ending(disk / "unetpp.prom")[0] == 0
    with pytest.raises(OutputError), exported(MetricsConfig(file=disk / "x.prom"), tmp_path):
        pass


def test_an_end_without_a_run_replaces_what_was_said(tmp_path: Path) -> None:
    config = MetricsConfig(file=tmp_path / "unetpp.prom")
    for code in (0, 1):
        began = time.time()
        write_end(config, tmp_path, code)
        found, finish = ending(tmp_path / "unetpp.prom")
        assert found == code and began <= finish
    write_end(MetricsConfig(), tmp_path, 0)  # nobody asked for a file


def test_only_a_run_that_comes_again_says_how_soon(tmp_path: Path) -> None:
    for every, line in ((None, ""), (0.5, "1800.0")):
        write_end(MetricsConfig(file=tmp_path / "unetpp.prom", every=every), tmp_path, 0)
        lines = [text for text in (tmp_path / "unetpp.prom").read_text().splitlines() if "every" in text]
        assert [text.split()[-1] for text in lines if text[0] != "#"] == ([line] if line else [])


def test_runs_have_no_series_in_common(tmp_path: Path) -> None:
    """node_exporter drops the second one of two files that have."""
    runs: list[tuple[Path, str | None]] = [
        (tmp_path / "a/out", None),
        (tmp_path / "b/out", None),
        (tmp_path / "a/out", "1/2"),
        (tmp_path / "a/out", "2/2"),
        (tmp_path / os.fsdecode(b"\xff"), None),
    ]
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for output, part in runs:
        with exported(MetricsConfig(file=tmp_path / "unetpp.prom"), output, part=part) as metrics:
            metrics.queued(1, "cpu", 1)
            waiting = [
                line for line in (tmp_path / "unetpp.prom").read_text().splitlines() if "shards_waiting{" in line
            ]
            assert waiting[0].endswith(" 1.0"), "a run whose workers never begin would look idle"
            metrics.finished({"done": 1}, 0)
        families = text_string_to_metric_families((tmp_path / "unetpp.prom").read_text(encoding="utf-8"))
        found = {(s.name, frozenset(s.labels.items())) for family in families for s in family.samples}
        assert len(found) > 15 and not found & seen
        seen |= found
    labels = [dict(labels) for name, labels in seen if name == "unetpp_run_exit_code"]
    assert {"output": f"{tmp_path}/a/out"} in labels and {"output": f"{tmp_path}/a/out", "part": "2/2"} in labels
