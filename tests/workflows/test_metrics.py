"""What the metrics file says of how a run ended; what a run counts is tested with the dashboard."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from unetpp.errors import ConfigError, EngineError
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
    with pytest.raises(type(error)), exported(config, workers=1):
        assert ending(tmp_path / "unetpp.prom") == (-1, 0)
        raise error
    found, finish = ending(tmp_path / "unetpp.prom")
    assert found == code and began <= finish <= time.time()


def test_a_run_without_its_port_has_ended_and_failed(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = MetricsConfig(file=tmp_path / "unetpp.prom", port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="choose another port"), exported(config, workers=1):
            pass
    assert ending(tmp_path / "unetpp.prom")[0] == 2


def test_an_end_without_a_run_replaces_what_was_said(tmp_path: Path) -> None:
    config = MetricsConfig(file=tmp_path / "unetpp.prom")
    for code in (0, 1):
        began = time.time()
        write_end(config, code)
        found, finish = ending(tmp_path / "unetpp.prom")
        assert found == code and began <= finish
    write_end(MetricsConfig(), 0)  # nobody asked for a file
