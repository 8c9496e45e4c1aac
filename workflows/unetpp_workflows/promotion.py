"""Moves the aliases `champion` and `previous` of a registered model, with evidence and a record; measures nothing.

    evaluate both -> judge -> record the decision -> lock -> previous, then champion -> record that it was done

Both models are measured before the lock is taken, so that it is held for seconds; a champion that changed meanwhile
ends the promotion. `previous` moves first: whenever the process dies, the name has a champion.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from unetpp.errors import ModelNotFoundError, PromotionError, RegistryError
from unetpp_workflows.gates import Candidate, GateResult, Gates, ShadowEvidence, check_names, judge
from unetpp_workflows.mlflow_store import (
    experiment,
    import_mlflow,
    init_store,
    locked,
    quoted,
    registry_errors,
    runs_of,
    store_uri,
)
from unetpp_workflows.registry import CHAMPION, PREVIOUS, aliases_of, read_card, resolve, version_of
from unetpp_workflows.registry_lock import RegistryLock, holder
from unetpp_workflows.tracking import SEGMENTATION, flat, log, numbers

EXPERIMENT = "unetpp-promotion"
CHALLENGER = "challenger"
JSON, PAGE = "decision.json", "decision.html"
OUTCOME_TAG, VERSION_TAG = "unetpp.decision.outcome", "unetpp.decision"
Outcome = Literal[
    "promoted",
    "refused",
    "unchanged",
    "would promote",
    "would refuse",
    "rolled back",
    "set by hand",
    "deleted",
    "failed",
]


def _now() -> str:
    # MLflow takes no "+" in a tag's name, and this becomes part of one.
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about a version, and on what evidence.

    Attributes:
        name, version: what it is about.
        champion: version that was champion before; None where there was none.
        gates: what was asked; empty where nothing was.
        data: what both were evaluated on; see `Evaluation.data`.
        evaluations: "champion" and "challenger" -> MLflow run of the evaluation.
        speeds: likewise -> what was measured for this decision.
        settings: the gates file, resolved.
        by, moment: who decided, and when (ISO 8601, UTC).
        run: the decision's MLflow run; None for a dry run, and where nothing changes.
    """

    name: str
    version: str
    champion: str | None
    outcome: Outcome
    gates: Sequence[GateResult] = ()
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, str | None] = dataclasses.field(default_factory=dict)
    speeds: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    by: str = dataclasses.field(default_factory=holder)
    moment: str = dataclasses.field(default_factory=_now)
    run: str | None = None

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def promote(
    name: str,
    store: Path,
    *,
    version: str | None = None,
    split: str = "test",
    gates: Gates | None = None,
    dry_run: bool = False,
    device: str = "cpu",
    tracking_uri: str | None = None,
    on_image: Callable[[], None] | None = None,
) -> Decision:
    """Make a version the champion where it passes every gate; refuse and record it where it does not.

    Args:
        name: registered model.
        store, split: prepared images that both are evaluated on; evaluations that exist are used.
        version: the challenger; by default the alias `challenger`, else the newest version.
        gates: by default the defaults of `Gates`.
        dry_run: judge, but record no decision and move nothing.
        device: where the evaluations run.
        on_image: called after each evaluated image.

    Raises:
        ModelNotFoundError: there is no such model or version.
        PromotionError: another promotion holds the name, or moved the champion while this one measured.
        DataError, StoreError: the images do not fit the models.
        ConfigError: a gate asks for a class or a kind of images that there is not.
        RegistryError: the store does not answer; without a record nothing is decided.
    """
    uri, gates = store_uri(tracking_uri), gates or Gates()
    client = init_store(uri)
    before = aliases_of(client, uri, name)
    champion = before.get(CHAMPION)
    version = version_of(client, uri, name, version or before.get(CHALLENGER))
    if version == champion:
        return Decision(name=name, version=version, champion=champion, outcome="unchanged")
    _check_gates(gates, store, split)
    sides = {CHALLENGER: version, **({CHAMPION: champion} if champion else {})}
    found = {
        side: _candidate(name, number, store, split, device, uri, on_image) for side, number in sorted(sides.items())
    }
    digests = [found[side].evaluation.model["digest"] for side in (CHAMPION, CHALLENGER) if side in found]
    shadow = shadow_evidence(client, uri, *digests) if champion else None
    results = judge(gates, found[CHALLENGER], found.get(CHAMPION), shadow)
    passed = all(result.passed for result in results)
    outcome: Outcome = "promoted" if passed else "refused"
    if dry_run:
        outcome = "would promote" if passed else "would refuse"
    decision = Decision(
        name=name,
        version=version,
        champion=champion,
        outcome=outcome,
        gates=results,
        data=dict(found[CHALLENGER].evaluation.data),
        evaluations={side: candidate.evaluation.run for side, candidate in found.items()},
        speeds={side: candidate.speed for side, candidate in found.items()},
        settings=gates.model_dump(mode="json"),
    )
    if dry_run:
        return decision
    if not passed:
        return _recorded(client, uri, decision, found)
    with RegistryLock(client, uri, name) as lock:
        after = aliases_of(client, uri, name)
        if after.get(CHAMPION) != champion:
            raise PromotionError(
                f"the champion of {name!r} was version {champion or 'none'} when this began and is now "
                f"{after.get(CHAMPION) or 'none'}; run the command again to compare with that one"
            )
        version_of(client, uri, name, version)  # it may have been deleted meanwhile
        return _recorded(client, uri, decision, found, lambda: _move(client, uri, name, version, champion, lock))


def rollback(
    name: str, *, to: str | None = None, outcome: Outcome = "rolled back", tracking_uri: str | None = None
) -> Decision:
    """Make `previous`, or the version `to`, the champion again; what was champion becomes `previous`.

    Args:
        to: version; by default the one with the alias `previous`.
        outcome: what the record says: "set by hand" for a person who passes the gates by.

    Raises:
        ModelNotFoundError: there is no such version, or no `previous`.
        PromotionError: another promotion or rollback holds the name.
    """
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    aliases_of(client, uri, name)
    with RegistryLock(client, uri, name) as lock:
        aliases = aliases_of(client, uri, name)
        champion, target = aliases.get(CHAMPION), to or aliases.get(PREVIOUS)
        if target is None:
            raise ModelNotFoundError(
                f"model {name!r} has no alias {PREVIOUS!r} to go back to; name a version with --to"
            )
        target = version_of(client, uri, name, target)
        decision = Decision(name=name, version=target, champion=champion, outcome=outcome)
        if target == champion:
            return dataclasses.replace(decision, outcome="unchanged")
        return _recorded(client, uri, decision, {}, lambda: _move(client, uri, name, target, champion, lock))


def delete_version(name: str, version: str, *, tracking_uri: str | None = None) -> Decision:
    """Delete a version that carries no alias.

    Raises:
        PromotionError: it carries one, or another promotion holds the name.
        ModelNotFoundError: there is no such version.
    """
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    version_of(client, uri, name, version)
    with RegistryLock(client, uri, name) as lock:
        aliases = aliases_of(client, uri, name)
        mine = sorted(alias for alias, number in aliases.items() if number == version)
        if mine:
            raise PromotionError(
                f"models:/{name}/{version} is @{', @'.join(mine)} and was not deleted; give that alias to another "
                "version first"
            )
        lock.check()
        with registry_errors(uri):
            client.delete_model_version(name, version)
        decision = Decision(name=name, version=version, champion=aliases.get(CHAMPION), outcome="deleted")
        return _recorded(client, uri, decision, {})


def history(name: str, *, tracking_uri: str | None = None) -> list[Decision]:
    """Return every decision about a model, newest first.

    Raises:
        ModelNotFoundError: there is no such model, and none was ever decided about. RegistryError: no answer.
    """
    uri = store_uri(tracking_uri)
    client = init_store(uri)
    found = [_from_run(row) for row in runs_of(client, uri, EXPERIMENT, f"tags.`{VERSION_TAG}.name` = {quoted(name)}")]
    if not found:
        aliases_of(client, uri, name)
    return sorted(found, key=lambda decision: decision.moment, reverse=True)


def shadow_evidence(client: Any, uri: str, champion: str, challenger: str) -> ShadowEvidence:
    """Add up the agreement on all images that the challenger shadowed the champion on, by the newest run of each.

    An image has a run for every precision, tile size and region that it was segmented with.

    Args:
        champion, challenger: their digests.
    """
    wanted = f"tags.`unetpp.model.digest` = '{champion}' and tags.`unetpp.shadow.digest` = '{challenger}'"
    newest_last = reversed(runs_of(client, uri, SEGMENTATION, wanted))
    images = {run.data.tags["unetpp.input.fingerprint"]: run.data.metrics for run in newest_last}
    px = sum(image["shadow.px"] for image in images.values())
    same = sum(image["shadow.agreement"] * image["shadow.px"] for image in images.values())
    return ShadowEvidence(len(images), same / px if px else None)


def _check_gates(gates: Gates, store: Path, split: str) -> None:
    """Raise `ConfigError` for names in gates that no image has, before hours of evaluation."""
    from unetpp_workflows.evaluation import EvaluationData

    data = EvaluationData.open(store, split)
    strata = sorted({image.stratum for image in data.source.images})
    check_names(gates, [info.name for info in data.store.classes], strata)


def _candidate(
    name: str, version: str, store: Path, split: str, device: str, uri: str, on_image: Callable[[], None] | None
) -> Candidate:
    from unetpp.package import load_package
    from unetpp_workflows import speed
    from unetpp_workflows.evaluation import EvaluationData
    from unetpp_workflows.evaluation_tracking import evaluated

    model = resolve(f"models:/{name}/{version}", tracking_uri=uri)
    data = EvaluationData.open(store, split)
    result = evaluated(model, data, device=device, tracking_uri=uri, on_image=on_image)
    if result.warning:
        raise RegistryError(f"the evaluation of version {version} was not recorded: {result.warning}")
    # A found evaluation's speed may be another machine's; a fresh one's is of this moment.
    measured = speed.measure_speed(model.folder) if result.found else result.evaluation.speed
    return Candidate(load_package(model.folder).spec, read_card(model, tracking_uri=uri), result.evaluation, measured)


def _move(client: Any, uri: str, name: str, version: str, champion: str | None, lock: RegistryLock) -> None:
    with registry_errors(uri):
        if champion is not None:
            lock.check()
            client.set_registered_model_alias(name, PREVIOUS, champion)
        lock.check()
        client.set_registered_model_alias(name, CHAMPION, version)
    try:
        with registry_errors(uri):
            if str(dict(client.get_registered_model(name).aliases).get(CHALLENGER)) == version:
                client.delete_registered_model_alias(name, CHALLENGER)
    except RegistryError as error:  # the champion has moved: that must not count as failed
        told = "models:/%s/%s is @champion, and may still be @challenger (%s)"
        logging.getLogger(__name__).warning(told, name, version, error)


def _recorded(
    client: Any,
    uri: str,
    decision: Decision,
    candidates: dict[str, Candidate],
    action: Callable[[], None] | None = None,
) -> Decision:
    """Write the decision down, do it, and write down that it was done; a record that fails keeps it from being done."""
    from unetpp_workflows.decision_page import decision_page
    from unetpp_workflows.evaluation_tracking import link_data, link_version

    with registry_errors(uri):
        with locked(uri):
            where = experiment(client, uri, EXPERIMENT)
        run_id = str(client.create_run(where, run_name=f"{decision.name}: {decision.outcome}").info.run_id)
        decision = dataclasses.replace(decision, run=run_id)
        told = {"name": decision.name, "version": decision.version, "champion": decision.champion,
                "by": decision.by, "moment": decision.moment}  # fmt: skip
        log(
            client,
            run_id,
            params=flat({"decision": told, "gates": decision.settings, "evaluation": decision.evaluations}),
            metrics=numbers({f"gate.{gate.gate}": gate.by for gate in decision.gates}),
            tags={f"{VERSION_TAG}.{key}": str(value) for key, value in told.items() if value is not None}
            | {OUTCOME_TAG: f"{decision.outcome}, not done yet" if action else decision.outcome},
        )
        if decision.data:
            link_data(client, run_id, decision.data)
        if decision.outcome != "deleted":
            for number in filter(None, (decision.version, decision.champion)):
                link_version(client, run_id, {"name": decision.name, "version": number})
        client.log_text(run_id, json.dumps(dataclasses.asdict(decision), indent=1, ensure_ascii=False), JSON)
        client.log_text(run_id, decision_page(decision, candidates), PAGE)
        try:
            if action is not None:
                action()
        except BaseException:
            log(client, run_id, tags={OUTCOME_TAG: "failed"})
            client.set_terminated(run_id, "FAILED")
            raise
        log(client, run_id, tags={OUTCOME_TAG: decision.outcome})
        if decision.outcome != "deleted":
            key, told_by = f"{VERSION_TAG}.{decision.moment}", f"{decision.outcome} by {decision.by}, run {run_id}"
            client.set_model_version_tag(decision.name, decision.version, key, told_by)
        client.set_terminated(run_id, "FINISHED")
    return decision


def _from_run(row: Any) -> Decision:
    import_mlflow()
    tags = row.data.tags
    return Decision(
        name=tags[f"{VERSION_TAG}.name"],
        version=tags[f"{VERSION_TAG}.version"],
        champion=tags.get(f"{VERSION_TAG}.champion"),
        outcome=tags.get(OUTCOME_TAG, "refused"),
        by=tags.get(f"{VERSION_TAG}.by", ""),
        moment=tags.get(f"{VERSION_TAG}.moment", ""),
        run=str(row.info.run_id),
    )
