"""Every command line in `cluster/` is one that the real program takes: its options are parsed, nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cluster.files import CLUSTER, FILES, commands
from unetpp_workflows.cli import app
from unetpp_workflows.mlflow_store import import_mlflow

OURS = [(file, words) for file in FILES for words in commands(file, "unetpp")]
RAYS = [(file, words) for file in FILES for words in commands(file, "ray")]


def parse(command: Any, words: list[str]) -> list[str]:
    """Parse a command line as the program would and return the names of the commands in it; raises click's errors.

    Typer brings a click of its own, so that a command is known by what it can do, not by its class.
    """
    names: list[str] = []
    context = None
    while True:
        context = command.make_context(command.name or "program", list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return names
        words = [*context._protected_args, *context.args]
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        names.append(str(name))
        command = found


def _name(case: tuple[Path, list[str]]) -> str:
    return f"{case[0].relative_to(CLUSTER)}-{case[1][0]}"


@pytest.mark.parametrize("case", OURS, ids=_name)
def test_unetpp_takes_the_command(case: tuple[Path, list[str]]) -> None:
    assert parse(typer.main.get_command(app), case[1])


@pytest.mark.parametrize("case", RAYS, ids=_name)
def test_ray_takes_the_command(case: tuple[Path, list[str]]) -> None:
    from ray.scripts.scripts import cli

    words = case[1]
    if "symmetric-run" in words:  # it takes its own two options out and gives the rest to `ray start`
        ours = words[1 : words.index("--")]
        assert [ours[0], ours[2]] == ["--address", "--min-nodes"]
        words = ["start", *ours[:2], *ours[4:]]
    parse(cli, words)


def test_mlflow_takes_the_command() -> None:
    import_mlflow()  # else its log stays loud for the rest of the session
    from mlflow.cli import cli

    ((_, words),) = [(file, words) for file in FILES for words in commands(file, "mlflow")]
    assert parse(cli, words) == ["server"]


def test_a_wrong_option_is_found() -> None:
    with pytest.raises(Exception, match="--modle"):
        parse(typer.main.get_command(app), ["segment", "x.tif", "--modle", "nuclei", "--output", "out"])
    with pytest.raises(Exception, match="segmnt"):
        parse(typer.main.get_command(app), ["segmnt", "x.tif"])


def test_no_file_that_runs_us_is_overlooked() -> None:
    found = {str(file.relative_to(CLUSTER)) for file, _ in OURS}
    jobs = {f"kuberay/jobs/{name}.yaml" for name in ("prepare", "train", "segment", "promote")}
    slurm = {f"slurm/{name}.sbatch" for name in ("train", "segment", "segment-array", "finish")}
    nights = {f"kuberay/nightly/{name}.yaml" for name in ("cronjob", "raycronjob")}
    nights |= {"cron/crontab", "cron/unetpp-nightly.service", "slurm/nightly.sbatch"}
    assert found >= jobs | slurm | nights | {
        "docker/compose.yaml",
        "ray/submit.sh",
        "kuberay/queue/segment.yaml",
        "README.md",
    }
