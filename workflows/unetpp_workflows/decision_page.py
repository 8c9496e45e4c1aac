"""Draws one self-contained page of a decision about a version; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unetpp_workflows.gates import Candidate, GateResult, paired_difference
from unetpp_workflows.plots import Row, dot_rows

if TYPE_CHECKING:
    from unetpp_workflows.promotion import Decision

_GROUPS = 40


def decision_page(decision: Decision, candidates: Mapping[str, Candidate]) -> str:
    """Return the page as HTML: the gates, and challenger minus champion for every group where there are both."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetpp_workflows"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    plot = None
    if {"champion", "challenger"} <= candidates.keys():
        plot = _difference(decision, candidates["champion"], candidates["challenger"])
    return environment.get_template("decision.html.j2").render(
        decision=decision,
        badge="failed" if decision.outcome == "refused" else "done",
        gates=[{"result": result, "how": outcome_text(result)} for result in decision.gates],
        plot=plot,
        table=[
            ("decided by", f"{decision.by}, {decision.moment}"),
            ("champion before", decision.champion or "none"),
            *[(f"evaluation of the {side}", f"MLflow run {run}") for side, run in decision.evaluations.items()],
            *_data(decision.data),
            *[
                (f"speed of the {side}", f"{speed['mpx_per_second']:.2f} Mpx/s, {speed['engine']} {speed['precision']}")
                for side, speed in decision.speeds.items()
            ],
        ],
    )


def outcome_text(result: GateResult) -> str:
    """Say whether a gate was passed, and by how much."""
    if result.by is None:
        return "passed" if result.passed else "failed"
    return f"{'passed' if result.passed else 'failed'} by {abs(result.by):.4g}"


def _difference(decision: Decision, champion: Candidate, challenger: Candidate) -> str:
    confidence = float(decision.settings["non_inferiority"]["confidence"])
    gain, low, groups = paired_difference(champion.evaluation, challenger.evaluation, confidence)
    by_group = sorted(((name, value) for name, value in groups.items() if value == value), key=lambda item: item[1])
    shown = by_group if len(by_group) <= _GROUPS else by_group[: _GROUPS // 2] + by_group[-_GROUPS // 2 :]
    middle, least = (value if value == value else None for value in (gain, low))
    rows = [Row("all images", middle, least, middle), *(Row(name, value) for name, value in shown)]
    reach = max([0.01, *(abs(value) for value in (gain, low, *(v for _, v in shown)) if value == value)])
    return dot_rows(rows, x="IoU of the challenger minus the champion's", x_range=(-reach, reach), zero=0.0,
                    title="Difference in IoU by group of images")  # fmt: skip


def _data(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not data:
        return []
    images = f"{data['images']} images in {data['groups']} groups"
    return [
        ("evaluated on", f"{data['name']}, split {data['split']}: {images}, fingerprint {data['fingerprint'][:16]}")
    ]
