"""Which images look unlike those a model was trained on, or unlike the rest of their archive; draws no conclusion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unetpp.geometry import Box
from unetpp.profile import WINDOW, WINDOWS, Profile, Unusual, profile_of, quantiles, spread, unusual, window_statistics
from unetpp.span import Span

if TYPE_CHECKING:
    from unetpp.job import SegmentJob
    from unetpp.package import ModelSpec
    from unetpp.region import Coverage

_CANDIDATES = 32
"""Windows per side that are tried for valid pixels."""
PROFILE = "profile_"
"""Columns of an archive's table start so."""


def job_profile(job: SegmentJob, spec: ModelSpec) -> Profile:
    """Return the profile of what a job segments, read at the spacing that the model saw; empty where nothing is valid.

    Raises: what reading an image raises.
    """
    from unetpp.io import open_raster
    from unetpp.io.resample import GridReader

    coverage = job.coverage()
    span = Span.of(spec.dtype, spec.mean, spec.std)
    image = Box(0, 0, job.plan.height, job.plan.width)
    boxes = _windows(image if coverage.region is None else coverage.region.box.intersect(image), coverage)
    with open_raster(job.uri) as raster:
        reader = GridReader(raster, job.grid)

        def look(box: Box) -> Profile | None:
            found = reader.read(box)
            return window_statistics(found.pixels, found.valid & coverage.crop(box), spec.bands, span)

        return profile_of(look(boxes[number]) for number in spread(len(boxes)))


def _windows(within: Box, coverage: Coverage) -> list[Box]:
    """Return windows on a regular grid in a box of the image, row by row, those with pixels to be segmented only."""
    sides = [min(size, WINDOW) for size in within.shape]
    counts = [min(_CANDIDATES, max(1, size // WINDOW)) for size in within.shape]
    if coverage.mask is None and coverage.region is None:
        counts = [min(count, round(WINDOWS**0.5)) for count in counts]
    starts = [
        [round((k + 0.5) * size / count - side / 2) for k in range(count)]
        for size, count, side in zip(within.shape, counts, sides, strict=True)
    ]
    boxes = [Box(y, x, y + sides[0], x + sides[1]).clip(*within.shape) for y in starts[0] for x in starts[1]]
    return [box for box in (box.shift(within.y0, within.x0) for box in boxes) if coverage.any(box)]


def unlike_training(profile: Profile, training: Mapping[str, Any]) -> list[Unusual]:
    """Compare a profile with what a model says of its training images; nothing where it says nothing."""
    return unusual(profile, training.get("profile") or {}, "training")


def unlike_archive(rows: Sequence[Mapping[str, Any]]) -> list[list[Unusual]]:
    """Compare every row of an archive's table with all rows of the same model; row by row, nothing for few images."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.get("status") == "done":
            groups[row.get("model_digest")].append(number)
    found: list[list[Unusual]] = [[] for _ in rows]
    for numbers in groups.values():
        profiles = {number: _numbers(rows[number]) for number in numbers}
        ranges = quantiles(list(profiles.values()))
        for number, profile in profiles.items():
            found[number] = unusual(profile, ranges, "archive")
    return found


def _numbers(row: Mapping[str, Any]) -> Profile:
    """Return what is compared within an archive: how images look, how much is valid, and the share of each class."""
    found = {name: value for name, value in row.items() if name.startswith(PROFILE) and value is not None}
    shares = {name: value for name, value in row.items() if name.startswith("area_") and value is not None}
    total = sum(shares.values())
    found |= {name.replace("area_", "share_", 1): value / total for name, value in shares.items() if total}
    return found | ({"valid_share": row["valid_share"]} if row.get("valid_share") is not None else {})


def words(items: Iterable[Unusual | Mapping[str, Any]]) -> str:
    """Say which numbers are unusual: focus -2.4 (usual -1.9 to -0.3 in training)."""
    values = [item.to_json() if isinstance(item, Unusual) else item for item in items]
    return ", ".join(
        f"{v['statistic'].removeprefix(PROFILE)} {v['value']:.3g} (usual {v['low']:.3g} to {v['high']:.3g} in "
        f"{'training' if v['among'] == 'training' else 'this archive'})"
        for v in values
    )
