"""The images, scripts and Ray files keep our rules: pinned, without root, without secrets, checked by linters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from tests.cluster.files import CLUSTER, FILES
from unetpp import __version__
from unetpp_workflows.mlflow_store import import_mlflow

DOCKERFILES = sorted((CLUSTER / "docker").glob("*.Dockerfile"))
SCRIPTS = [file for file in FILES if file.read_bytes().startswith(b"#!")]
COMPOSE: dict[str, Any] = yaml.safe_load((CLUSTER / "docker" / "compose.yaml").read_text())
_IMAGE = re.compile(r"(?:^FROM |image: *)\"?([^\s\"#]+)", re.MULTILINE)
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@$]+:[^@\s$*.]+@"
    r"|(?i:password|secret|token|access_key)[\w-]*[=:] *[\"']?[A-Za-z0-9+/]{12,}[\"']?\s*$",
    re.MULTILINE,
)


def images(text: str) -> list[str]:
    return [name for name in _IMAGE.findall(text) if name != "build"]


def test_every_image_has_a_tag_that_stays() -> None:
    found = [(file.name, name) for file in FILES for name in images(file.read_text())]
    assert len(found) >= 12
    for where, name in found:
        tag = name.partition("@")[0].rpartition("/")[2].partition(":")[2]
        assert re.search(r"\d", tag), f"{where}: {name} has no version"
        assert "latest" not in tag, f"{where}: {name}"
        if "/unetpp:" in name:
            assert tag.startswith(f"{__version__}-"), f"{where}: {name}, but this is {__version__}"
    assert not any(":latest" in file.read_text() for file in FILES)


def test_no_file_holds_a_secret() -> None:
    for file in FILES:
        assert not (found := _SECRET.findall(file.read_text())), f"{file}: {found}"
    assert _SECRET.search("url: postgresql://mlflow:hunter22@db/mlflow")
    assert _SECRET.search("AWS_SECRET_ACCESS_KEY: 4fjL3kd93jfKEJ4h5k3")
    assert not list(CLUSTER.rglob(".env*"))


def faults(dockerfile: str) -> list[str]:
    """Return what a Dockerfile does against our rules (after hadolint's, which is on no package index)."""
    joined = re.sub(r"\\\n", " ", dockerfile)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last if line.startswith("USER ")]
    found = []
    if not users or users[-1].split(":")[0] in ("root", "0"):
        found.append("runs as root")
    if not any(line.startswith("HEALTHCHECK ") and "CMD" in line for line in last):
        found.append("no health check")
    for line in lines:
        if line.startswith("ADD "):
            found.append("ADD fetches and unpacks: use COPY")
        if re.match(r"(ENTRYPOINT|CMD) [^\[]", line):
            found.append("a shell would take the signals: use the JSON form")
        if "apt-get install" in line and not ("--no-install-recommends" in line and "rm -rf /var/lib/apt" in line):
            found.append("apt-get leaves more than was asked for")
        if "pip install" in line and not ("constraints.txt" in line and "mount=type=cache" in line):
            found.append("pip installs what is not in the lock, or keeps its cache")
        if re.match(r"WORKDIR [^/]", line):
            found.append("relative WORKDIR")
        if re.search(r"\bsudo\b|curl .*\| *(ba)?sh", line):
            found.append("sudo, or a script from the network")
        if re.match(r"(ENV|ARG) .*(PASSWORD|SECRET|_KEY|TOKEN)=", line):
            found.append("a secret in a layer")
    return found


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_keeps_the_rules(file: Path) -> None:
    text = file.read_text()
    assert faults(text) == []
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)", text, re.MULTILINE) for word in line.split()[:-1]}
    assert all((CLUSTER.parent / name).exists() for name in copied)
    ignored = Path(f"{file}.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("USER root", "runs as root"),
        ("RUN apt-get update && apt-get install -y gcc", "apt-get"),
        ("RUN pip install torch", "lock"),
        ("CMD unetpp --help", "signals"),
        ("ENV API_TOKEN=abc", "secret"),
    ],
)
def test_the_rules_find_faults(line: str, fault: str) -> None:
    good = DOCKERFILES[0].read_text()
    assert any(fault in found for found in faults(f"{good}{line}\n"))


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_finds_nothing(file: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    found = subprocess.run(["shellcheck", file], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout
    assert re.search(r"^set -eu", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["onprem", "aws"])
def test_ray_up_takes_the_file(name: str) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    settings = yaml.safe_load((CLUSTER / "ray" / f"{name}.yaml").read_text())
    jsonschema.validate(settings, schema)
    starts = settings["head_start_ray_commands"] + settings["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if " start " in line)


def test_the_night_is_one_that_unetpp_takes() -> None:
    from unetpp_workflows.nightly import load_nightly

    config = load_nightly(CLUSTER / "nightly.toml")
    assert config.model == "nuclei" and config.promotion is not None
    assert config.segment.executor.kind == "ray" and config.segment.executor.address == "auto"


def test_nights_never_overlap_and_leaving_is_no_failure() -> None:
    from unetpp_workflows.nightly import BUSY

    (cron,) = yaml.safe_load_all((CLUSTER / "kuberay" / "nightly" / "cronjob.yaml").read_text())
    assert cron["spec"]["concurrencyPolicy"] == "Forbid" and cron["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    service = (CLUSTER / "cron" / "unetpp-nightly.service").read_text()
    assert f"SuccessExitStatus={BUSY}" in service
    assert "--dependency=singleton" in (CLUSTER / "slurm" / "nightly.sbatch").read_text()


def test_compose_services_are_closed_and_say_when_they_are_ready() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"postgres", "objects", "bucket", "mlflow", "ray-head", "ray-worker", "segment"}
    for name, service in services.items():
        if service["restart"] != "no":
            assert "healthcheck" in service, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens on every address: {port}"
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"], name
        for other in service.get("depends_on", {}):
            assert other in services, name
        if "unetpp" in service["image"]:
            assert service["cap_drop"] == ["ALL"] and service["read_only"] is True, name
    assert all(list(secret) == ["file"] for secret in COMPOSE["secrets"].values())


def test_mlflow_answers_by_the_names_that_our_files_call_it() -> None:
    """Its server refuses every host that it was not told of, and its health check is asked before that."""
    import_mlflow()
    from mlflow.server.security_utils import is_allowed_host_header

    [command] = COMPOSE["services"]["mlflow"]["command"]
    values = yaml.safe_load((CLUSTER / "kuberay/mlflow-values.yaml").read_text())
    allowed = {
        "docker": command.partition("--allowed-hosts ")[2].split()[0],
        "kuberay": next(v["value"] for v in values["env"] if v["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"),
    }
    uris = [
        (file, uri)
        for file in FILES
        for uri in re.findall(r"MLFLOW_TRACKING_URI\b.*?(http://[^\s\"'}]+)", file.read_text())
    ]
    hosts = [(file.relative_to(CLUSTER).parts[0], urlsplit(uri).netloc) for file, uri in uris]
    assert {where for where, _ in hosts} == set(allowed) and len(hosts) >= 3
    for where, host in [*hosts, *((where, "localhost:5000") for where in allowed), ("kuberay", "10.1.2.3:5000")]:
        assert is_allowed_host_header(allowed[where].split(","), host), f"{where}: {host}"
    assert not is_allowed_host_header(allowed["docker"].split(","), "evil.example:5000")


def test_the_secrets_script_makes_every_file_once(tmp_path: Path) -> None:
    script = Path(shutil.copy(CLUSTER / "docker" / "secrets.sh", tmp_path))
    subprocess.run(["sh", script], check=True, timeout=60)
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert len(set(made.values())) == len(made) and all(re.fullmatch("[0-9a-f]{48}", text) for text in made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    subprocess.run(["sh", script], check=True, timeout=60)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == made
