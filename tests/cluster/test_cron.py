"""The line that cron runs, run by a real shell: unetpp sees what the environment file sets."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path

import pytest

from tests.cluster.files import CLUSTER

FOLDER = CLUSTER / "cron"
WEBHOOK = "https://hooks.example.com/x?a=1&b=2"


@pytest.fixture
def night(tmp_path: Path) -> str:
    """The command of the crontab, with this folder in the place of /etc/unetpp and /opt/unetpp/bin."""
    [line] = [line for line in (FOLDER / "crontab").read_text().splitlines() if line[0] in "0123456789*"]
    program = tmp_path / "unetpp"
    program.write_text(f'#!/bin/sh\nenv > {tmp_path}/seen\necho "$@"\n')
    program.chmod(0o755)
    return line.split(maxsplit=5)[5].replace("/etc/unetpp", str(tmp_path)).replace("/opt/unetpp/bin", str(tmp_path))


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_night_has_the_environment_of_the_file(night: str, tmp_path: Path) -> None:
    (tmp_path / "environment").write_text(f"# secrets\nUNETPP_WEBHOOK='{WEBHOOK}'\nMLFLOW_TRACKING_URI=http://m:5000\n")
    ran = shell(night)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"nightly {tmp_path}/nightly.toml\n", "")
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    assert (seen["UNETPP_WEBHOOK"], seen["MLFLOW_TRACKING_URI"]) == (WEBHOOK, "http://m:5000")


def test_a_night_without_its_environment_is_told_by_cron(night: str, tmp_path: Path) -> None:
    ran = shell(night)
    assert ran.returncode != 0 and "environment" in ran.stderr and not (tmp_path / "seen").exists()


def test_a_night_under_systemd_reaches_the_ray_cluster() -> None:
    """In a private /tmp the sockets of Ray's processes are not there, and Ray ends the program without a word."""
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(FOLDER / "unetpp-nightly.service")
    assert "PrivateTmp" not in unit["Service"] and "/tmp" in unit["Service"]["ReadWritePaths"].split()  # noqa: S108


def test_cron_and_systemd_say_who_may_read_the_secrets() -> None:
    for name in ("crontab", "unetpp-nightly.service"):
        text = (FOLDER / name).read_text()
        assert "mode 0640" in text and "root:unetpp" in text and "root alone" not in text
