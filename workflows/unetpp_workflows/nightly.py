"""Runs a night: sync the archive, segment what is new, judge a waiting challenger, report, alert; knows no scheduler.

Every step is one that can be repeated: a second run finds everything done, and a run that was killed is continued. One
step that fails does not keep the others from running. The ledger of the archive is OUTPUT/nightly/ledger.json.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from unetpp.errors import ConfigError, StoreError, UnetppError
from unetpp_workflows.alert import send_alert
from unetpp_workflows.cli_options import DONE, PART_FAILED
from unetpp_workflows.config import RunConfig, apply_setting, read_toml, validate
from unetpp_workflows.lease import Lease
from unetpp_workflows.ledger import Ledger, Sync, sync
from unetpp_workflows.nightly_page import write_page
from unetpp_workflows.pipeline import find_sources, make_folder
from unetpp_workflows.record import write_json
from unetpp_workflows.steps import utc_now

FOLDER = "nightly"
BUSY = 75
"""Exit code where another night holds the folder: try again later (sysexits' EX_TEMPFAIL)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromotionConfig(_Section):
    """What a waiting challenger is judged on: a prepared store, its split, and a gates file."""

    data: Path
    split: str = "test"
    gates: Path | None = None
    device: str = "cpu"


class NightlyConfig(_Section):
    """A night: what the archive is, where results go, which registered model is used, and how.

    `segment` is the run configuration of `unetpp segment`, without a model: that is always NAME's champion.
    """

    archive: tuple[str, ...] = Field(min_length=1)
    output: Path
    model: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    segment: RunConfig = RunConfig()
    promotion: PromotionConfig | None = None


@dataclass
class Night:
    """What one night did; the JSON of its report.

    Attributes:
        problems: one line for everything that failed; none means exit code 0.
        images: name -> status, message and model of every image that was worked on.
        promotion: version, champion before and outcome; "none waits" and "refused before" are outcomes too.
    """

    started: str
    archive: dict[str, Any] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    champion: str | None = None
    promotion: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    finished: str = ""

    @property
    def exit_code(self) -> int:
        return PART_FAILED if self.problems else DONE


def load_nightly(file: Path, sets: Iterable[str] = ()) -> NightlyConfig:
    """Read a night's TOML file; raises `ConfigError` that names the wrong key or value."""
    values = read_toml(file)
    for setting in sets:
        apply_setting(values, setting)
    config = validate(NightlyConfig, values, source=str(file))
    if config.segment.model:
        raise ConfigError(f"{file}: segment.model = {config.segment.model!r}: a night uses the champion of `model`")
    return config


def run_night(config: NightlyConfig, console: Console) -> int:
    """Run a night and return the exit code: 0 done, 1 something failed, 75 another night is running.

    Raises:
        OutputError: the output folder cannot be written.
    """
    make_folder(config.output / FOLDER)
    try:
        lease = Lease(config.output / FOLDER)
        lease.__enter__()
    except StoreError as error:
        console.print(f"left: {error}", markup=False, highlight=False, soft_wrap=True)
        return BUSY
    try:
        night = _night(config, console)
    finally:
        lease.__exit__(None, None, None)
    for problem in night.problems:
        console.print(f"failed: {problem}", markup=False, highlight=False, soft_wrap=True)
    if night.problems:
        undelivered = send_alert(f"unetpp nightly {config.model}: {len(night.problems)} problem(s)", asdict(night))
        if undelivered:
            console.print(f"failed: {undelivered}", markup=False, highlight=False, soft_wrap=True)
    return night.exit_code


def _night(config: NightlyConfig, console: Console) -> Night:
    began, night = time.perf_counter(), Night(started=utc_now())
    folder = config.output / FOLDER
    ledger = Ledger.load(folder)
    found: list[Sync] = []

    def synchronise() -> None:
        sources, unnamed = find_sources(config.archive, config.output)
        night.problems += [str(result.message) for result in unnamed.values()]
        # A part of the archive that cannot be listed is not a part that was removed.
        found.append(sync(ledger, sources, complete=not unnamed))
        night.archive = found[0].to_json()
        _say(console, found[0].sentence())

    _step(night, "sync", synchronise)
    if found:
        _step(night, "segment", lambda: _segment(config, found[0], ledger, night, console))
        ledger.save(folder)
    if config.promotion is not None:
        promotion = config.promotion
        _step(night, "promote", lambda: _promote(config, promotion, ledger, night, console))
        ledger.save(folder)
    night.seconds, night.finished = round(time.perf_counter() - began, 3), utc_now()
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    write_json(folder / f"{name}.json", {**asdict(night), "exit_code": night.exit_code})
    write_page(folder / f"{name}.html", config.model, asdict(night), ledger)
    _say(console, f"report: {folder / name}.html")
    return night


def _step(night: Night, name: str, run: Callable[[], None]) -> None:
    """Run one step; what it raises is a problem of the night, not its end."""
    try:
        run()
    except (UnetppError, OSError) as error:
        night.problems.append(f"{name}: {' '.join(str(error).split())}")


def _segment(config: NightlyConfig, found: Sync, ledger: Ledger, night: Night, console: Console) -> None:
    from unetpp_workflows.pipeline import segment
    from unetpp_workflows.selection import Selection
    from unetpp_workflows.summary import print_summary

    if not found.todo:
        return
    reference = f"models:/{config.model}@champion"
    chosen = frozenset(source.uri for source in found.todo)
    selection = Selection(only=chosen)
    summary = segment(
        config.archive, reference, config.output, config=config.segment, selection=selection, console=console
    )
    print_summary(summary, console)
    for image in summary.images:
        if image.uri not in chosen:
            continue
        model = image.record.model.get("uri") if image.record and image.record.model else None
        night.champion = night.champion or model
        night.images[image.name] = {"status": image.status, "message": image.message, "model": model}
        ledger.settle(image.uri, image.status, model, night.started)
        if image.status in ("failed", "partial") or image.warning:
            night.problems.append(str(image.message or image.warning))


def _promote(config: NightlyConfig, promotion: PromotionConfig, ledger: Ledger, night: Night, console: Console) -> None:
    """Judge the challenger unless the same question was answered before."""
    from unetpp_workflows.cli_promotion import print_decision
    from unetpp_workflows.evaluation import EvaluationData
    from unetpp_workflows.gates import load_gates
    from unetpp_workflows.mlflow_store import init_store, store_uri
    from unetpp_workflows.promotion import CHALLENGER, promote
    from unetpp_workflows.registry import CHAMPION, aliases_of
    from unetpp_workflows.training_job import device

    uri = store_uri(config.segment.tracking.uri)
    aliases = aliases_of(init_store(uri), uri, config.model)
    version, champion = aliases.get(CHALLENGER), aliases.get(CHAMPION)
    if version is None or version == champion:
        night.promotion = {"outcome": "none waits", "champion": champion}
        return
    gates = load_gates(promotion.gates)
    data = EvaluationData.open(promotion.data, promotion.split)
    question = [version, champion, data.store.facts.get("fingerprint"), promotion.split, gates.model_dump(mode="json")]
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    night.promotion = {"version": version, "champion": champion}
    if key in ledger.refused:
        night.promotion |= {"outcome": "refused before", "run": ledger.refused[key]}
        _say(console, f"models:/{config.model}/{version} was refused before, and nothing has changed since")
        return
    decision = promote(
        config.model,
        promotion.data,
        version=version,
        split=promotion.split,
        gates=gates,
        device=device(promotion.device),
        tracking_uri=config.segment.tracking.uri,
    )
    print_decision(decision, console)
    failed = [f"{gate.gate}: {gate.measured}, {gate.limit}" for gate in decision.gates if not gate.passed]
    night.promotion |= {"outcome": decision.outcome, "run": decision.run, "failed": failed}
    if decision.outcome == "refused":
        ledger.refused[key] = decision.run


def _say(console: Console, message: str) -> None:
    console.print(message, markup=False, highlight=False, soft_wrap=True)
