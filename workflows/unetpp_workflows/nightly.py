"""Runs a night: sync the archive, segment what is new, judge a waiting challenger, report, alert; knows no scheduler.

Every step is one that can be repeated: a second run finds everything done, and a run that was killed is continued. One
step that fails does not keep the others from running. The ledger of the archive is OUTPUT/nightly/ledger.json.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from unetpp.errors import ConfigError, StoreError, UnetppError
from unetpp.io.bands import split_item
from unetpp.io.remote import is_remote, local_path
from unetpp.io.video import split_frame
from unetpp_workflows.alert import guarded, send_alert
from unetpp_workflows.cli_options import DONE, PART_FAILED
from unetpp_workflows.config import RunConfig, apply_setting, read_toml, validate
from unetpp_workflows.lease import Lease
from unetpp_workflows.ledger import Ledger, Sync, sync
from unetpp_workflows.metrics import write_end
from unetpp_workflows.nightly_page import write_page
from unetpp_workflows.pipeline import find_sources, make_folder
from unetpp_workflows.record import write_json
from unetpp_workflows.steps import utc_now

if TYPE_CHECKING:
    from unetpp_workflows.gates import Gates
    from unetpp_workflows.summary import ImageResult

FOLDER = "nightly"
BUSY = 75
"""Exit code where another night holds the folder: try again later (sysexits' EX_TEMPFAIL)."""
PROBLEMS_TOLD = 20
"""Of a night, by an alert: all of them are in the report."""

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


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

    `segment` is the run configuration of `unetpp segment`, without a model: that is always NAME's champion. It has no
    shadow. Its `metrics.every` is a day unless it says otherwise.
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
        segmented: exit code of the segmentation, as in its metrics; None where nothing was to do, or it broke off.
    """

    started: str
    archive: dict[str, Any] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    champion: str | None = None
    promotion: dict[str, Any] = field(default_factory=dict)
    segmented: int | None = None
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
    if config.segment.shadow.model:
        raise ConfigError(
            f"{file}: segment.shadow.model = {config.segment.shadow.model!r}: a night runs no shadow; run "
            "`unetpp segment --shadow` on the archive beside it"
        )
    if config.segment.metrics.every is None:
        daily = config.segment.metrics.model_copy(update={"every": 24.0})
        config = config.model_copy(update={"segment": config.segment.model_copy(update={"metrics": daily})})
    return config


def run_night(config: NightlyConfig, console: Console) -> int:
    """Run a night and return the exit code: 0 done, 1 something failed, 75 another night is running.

    Whatever goes wrong is a problem of the night: it is posted, printed, and in the metrics. An interruption is posted,
    too, before it goes on; and so is an end without a word, by a process of its own.
    """
    why = "it was killed, memory was full, or the head of its Ray cluster is gone; the next night continues it"
    details = {"started": utc_now(), "output": str(config.output), "problems": [f"night: {why}"]}
    with guarded(f"unetpp nightly {config.model}: ended without a word", details) as told:
        return _run_night(config, console, told)


def _run_night(config: NightlyConfig, console: Console, told: Callable[[], None]) -> int:
    night, folder = Night(started=utc_now()), config.output / FOLDER
    try:
        make_folder(folder)
        with ExitStack() as held:
            try:
                held.enter_context(Lease(folder))
            except StoreError as error:
                _say(console, f"left: {error}")
                told()
                return BUSY
            _work(config, night, console)
    except Exception as error:  # noqa: BLE001 (nobody watches a night: what is not told is not known)
        _note(night, "night", error)
    except BaseException as error:
        night.problems.append(f"night: ended by {type(error).__name__}; the next one continues it")
        _tell(config, night)
        told()
        raise
    undelivered = _tell(config, night)
    told()
    for problem in (*night.problems, *filter(None, [undelivered])):
        _say(console, f"failed: {problem}")
    return night.exit_code


def _work(config: NightlyConfig, night: Night, console: Console) -> None:
    """Do all steps of a night but the last, which tells how it went."""
    began, folder = time.perf_counter(), config.output / FOLDER
    ledger = _step(night, "ledger", Ledger.load, folder)
    # A ledger that cannot be read is left as it is: working without it would replace it.
    if ledger is not None:
        found = _step(night, "sync", _sync, config, ledger, night, console)
        if found is not None:
            _step(night, "segment", _segment, config, found, ledger, night, console)
            _step(night, "ledger", ledger.save, folder)
        if config.promotion is not None:
            _step(night, "promote", _promote, config, config.promotion, ledger, night, console)
            _step(night, "ledger", ledger.save, folder)
    night.seconds, night.finished = round(time.perf_counter() - began, 3), utc_now()
    _step(night, "report", _report, config, ledger or Ledger(), night, console)


def _step(night: Night, name: str, run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Run one step; what it raises is a problem of the night, not its end, and the step returns None."""
    try:
        return run(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 (one step that fails must not stop the others; it is reported)
        _note(night, name, error)
        return None


def _note(night: Night, step: str, error: Exception) -> None:
    kind = ""
    if not isinstance(error, UnetppError | OSError):
        log.error("%s: unexpected error", step, exc_info=error)
        kind = f"unexpected {type(error).__name__}: "
    night.problems.append(f"{step}: {kind}{' '.join(str(error).split())}")


def _tell(config: NightlyConfig, night: Night) -> str | None:
    """Say in the metrics how the night ended, and by an alert what failed; return why that was not delivered."""
    if night.segmented != night.exit_code:
        _step(night, "metrics", write_end, config.segment.metrics, config.output, night.exit_code)
    if not night.problems:
        return None
    details = {
        "started": night.started,
        "seconds": night.seconds,
        "archive": {kind: len(found) if isinstance(found, list) else found for kind, found in night.archive.items()},
        "images": Counter(image["status"] for image in night.images.values()),
        "champion": night.champion,
        "promotion": night.promotion,
        "problems": night.problems[:PROBLEMS_TOLD],
    }
    return send_alert(f"unetpp nightly {config.model}: {len(night.problems)} problem(s)", details)


def _sync(config: NightlyConfig, ledger: Ledger, night: Night, console: Console) -> Sync:
    there = [item for item in config.archive if _is_there(item)]
    sources, unnamed = find_sources(there, config.output)
    missing = [item for item in config.archive if item not in there]
    night.problems += [f"{item}: no such file or folder; mount it, or correct archive" for item in missing]
    night.problems += [str(result.message) for result in unnamed.values()]
    # A part of the archive that cannot be listed is not a part that was removed.
    found = sync(ledger, sources, complete=not (unnamed or missing))
    night.archive = found.to_json()
    _say(console, found.sentence())
    return found


def _is_there(item: str) -> bool:
    """Say whether a part of the archive can be looked at; of patterns and remote ones, listing them says it."""
    held = split_item(item) or split_frame(item)
    if is_remote(item) or glob.has_magic(item):
        return True
    return (held[0] if held else local_path(item)).exists()


def _report(config: NightlyConfig, ledger: Ledger, night: Night, console: Console) -> None:
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    file = config.output / FOLDER / f"{name}.json"
    write_json(file, {**asdict(night), "exit_code": night.exit_code})
    write_page(file.with_suffix(".html"), config.model, asdict(night), ledger)
    _say(console, f"report: {file.with_suffix('.html')}")


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
    night.segmented = summary.exit_code
    print_summary(summary, console)
    night.problems += summary.faults
    for image in summary.images:
        if image.uri not in chosen:
            continue
        model = _model_of(image)
        night.champion = night.champion or model
        night.images[image.name] = {"status": image.status, "message": image.message, "model": model}
        ledger.settle(image.uri, image.status, model, night.started)
        if image.status == "failed":
            night.problems.append(str(image.message))
        elif image.status == "partial" or image.warning:
            night.problems.append(f"{image.name}: {image.warning or image.message}")


def _model_of(image: ImageResult) -> str | None:
    """Return the model that an image's record names, None where there is no record, or none that can be read."""
    try:
        record = image.record
    except StoreError:
        return None  # the image failed by it
    return record.model.get("uri") if record is not None else None


def _promote(config: NightlyConfig, promotion: PromotionConfig, ledger: Ledger, night: Night, console: Console) -> None:
    """Judge the challenger unless the same question was answered before, with as much known of its shadow runs.

    A refusal for what was measured at the moment alone is no answer: the next night measures again.
    """
    from unetpp_workflows.cli_promotion import print_decision
    from unetpp_workflows.evaluation import EvaluationData
    from unetpp_workflows.gates import load_gates
    from unetpp_workflows.mlflow_store import init_store, store_uri
    from unetpp_workflows.promotion import CHALLENGER, promote
    from unetpp_workflows.registry import CHAMPION, aliases_of, resolve
    from unetpp_workflows.training_job import device

    uri = store_uri(config.segment.tracking.uri)
    client = init_store(uri)
    aliases = aliases_of(client, uri, config.model)
    version, champion = aliases.get(CHALLENGER), aliases.get(CHAMPION)
    if version is None or version == champion:
        night.promotion = {"outcome": "none waits", "champion": champion}
        return
    gates = load_gates(promotion.gates)
    data = EvaluationData.open(promotion.data, promotion.split)
    numbers = [number for number in (champion, version) if number is not None]
    # A registry that was made anew counts its versions from 1 again.
    digests = [resolve(f"models:/{config.model}/{number}", tracking_uri=uri).digest for number in numbers]
    question = [version, champion, digests, data.store.facts.get("fingerprint"), promotion.split]
    question.append(gates.model_dump(mode="json"))
    if not _shadow_passes(client, uri, gates, digests):
        question.append("shadow")
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
    failed = [gate for gate in decision.gates if not gate.passed]
    told = [f"{gate.gate}: {gate.measured}, {gate.limit}" for gate in failed]
    night.promotion |= {"outcome": decision.outcome, "run": decision.run, "failed": told}
    if decision.outcome == "refused" and not all(gate.of_the_moment for gate in failed):
        ledger.refused[key] = decision.run


def _shadow_passes(client: Any, uri: str, gates: Gates, digests: list[str]) -> bool:
    """Say what a gate would of the shadow runs until now; they go on while the challenger waits.

    Args:
        digests: champion's and challenger's, or the latter's alone.
    """
    from unetpp_workflows.gates import judge_shadow
    from unetpp_workflows.promotion import shadow_evidence

    if len(digests) < 2 or "shadow" in gates.off:
        return True
    return all(result.passed for result in judge_shadow(gates.shadow, shadow_evidence(client, uri, *digests)))


def _say(console: Console, message: str) -> None:
    console.print(message, markup=False, highlight=False, soft_wrap=True)
