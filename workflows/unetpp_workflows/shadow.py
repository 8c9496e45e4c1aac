"""Lets a second model segment a share of the images unseen, and records how far both agree; never changes a result.

    OUTPUT/<image>/record.json     "shadow": the agreement on this image, also in its MLflow run and in summary.csv
    OUTPUT/.shadow/<digest>/       the second model's own output folder

Which images are taken depends on a hash of their fingerprint alone: the same on every machine and every night, and a
larger share takes the same images and more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetpp.errors import ConfigError, EngineError, ModelPackageError, UnetppError
from unetpp.levels import NO_DATA
from unetpp_workflows.config import MetricsConfig, OutputConfig, RunConfig, ShadowConfig
from unetpp_workflows.record import ImageRecord
from unetpp_workflows.selection import Selection
from unetpp_workflows.summary import ImageResult, Summary

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = ".shadow"
_DIGEST_CHARS = 16


@dataclass(frozen=True)
class ShadowSummary:
    """How far two models agree on the images that both segmented.

    Attributes:
        model: name, version, digest and uri of the second model.
        agreement: image name -> share of the pixels, valid in both, with the same class.
        px: image name -> those pixels.
        trouble: image name -> why there is no agreement on it; and what of the second call could not be written.
    """

    model: dict[str, Any]
    agreement: dict[str, float]
    px: dict[str, int]
    trouble: dict[str, str]

    @property
    def pooled(self) -> float | None:
        """Agreement over all pixels of all images; None without any."""
        total = sum(self.px.values())
        return sum(self.agreement[name] * px for name, px in self.px.items()) / total if total else None


def chosen(fingerprint: str, share: float) -> bool:
    """Say whether an image is in the share, by its fingerprint."""
    digest = hashlib.sha256(f"unetpp shadow {fingerprint}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def check_shadow(config: RunConfig) -> None:
    """Raise now what would be told after a night of segmenting: no such model, the first one again, other classes."""
    from unetpp.package import load_package
    from unetpp_workflows.registry import resolve

    first, second = (resolve(name, tracking_uri=config.tracking.uri) for name in (config.model, config.shadow.model))
    if first.digest == second.digest:
        raise ConfigError(f"--shadow {config.shadow.model} has the weights of --model {config.model}; name another one")
    ours, theirs = (sorted(info.name for info in load_package(model.folder).spec.classes) for model in (first, second))
    if ours != theirs:
        raise ConfigError(
            f"--shadow {config.shadow.model} has the classes {', '.join(theirs)}, --model {config.model} has "
            f"{', '.join(ours)}: their labels cannot be compared; name one with the same classes"
        )


def run_shadow(
    summary: Summary, inputs: Iterable[str | Path], *, output: Path, config: RunConfig, console: Console | None = None
) -> ShadowSummary:
    """Segment the share of the finished images with the second model and compare; what is done is not done again.

    Args:
        summary: of the call whose results are in `output`.
        inputs, output, config: of that call; `config.shadow` names the second model and the share.

    Raises:
        ModelNotFoundError, ModelPackageError: there is no such second model.
        StoreError: another run is writing the output folder.
    """
    from unetpp_workflows.archive import write_summary
    from unetpp_workflows.lease import Lease
    from unetpp_workflows.pipeline import segment
    from unetpp_workflows.registry import resolve

    wanted = config.shadow
    model = resolve(wanted.model, tracking_uri=config.tracking.uri)
    done = [image for image in summary.images if image.status == "done" and image.record and image.folder]
    taken = {image.uri: image for image in done if _taken(image, wanted.share)}
    found = ShadowSummary(dict(model.reference()), {}, {}, {})
    if not taken:
        return found
    own = config.model_copy(
        update={
            "model": model.uri,
            "shadow": ShadowConfig(),
            "output": OutputConfig(formats=()),
            "metrics": MetricsConfig(),  # the file is to say how the first run ended
        }
    )
    try:
        second = segment(
            inputs,
            model.folder if model.version is None else model.uri,
            output / FOLDER / model.digest[:_DIGEST_CHARS],
            config=own,
            selection=Selection(only=frozenset(taken)),
            console=console,
        )
    except (EngineError, ModelPackageError) as error:  # of this model: the first one's results are as they were
        found.trouble["every image"] = str(error)
        return found
    found.trouble.update({f"{FOLDER} {number}": fault for number, fault in enumerate(second.faults, 1)})
    with Lease(output):
        for image in second.images:
            first = taken.get(image.uri)
            if first is None:
                continue
            try:
                compared = _compared(first, image, found.model, config)
                found.agreement[first.name], found.px[first.name] = compared["agreement"], compared["px"]
            except UnetppError as error:
                found.trouble[first.name] = str(error)
        write_summary(output)
    return found


def print_shadow(found: ShadowSummary, console: Console) -> None:
    """Print the pooled agreement, the image that agrees least, and what could not be compared."""
    version = f" version {found.model['version']}" if found.model.get("version") else ""
    name = f"shadow {found.model['name']}{version}"
    if found.pooled is None:
        console.print(f"{name}: no image compared", markup=False, highlight=False)
    else:
        least = min(found.agreement, key=found.agreement.__getitem__)
        console.print(
            f"{name}: {len(found.agreement)} image(s) compared, agreement {found.pooled:.4f} of the pixels, least "
            f"{found.agreement[least]:.4f} ({least})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for image, why in found.trouble.items():
        console.print(f"{name}, {image}: {why}", markup=False, highlight=False, soft_wrap=True)


def _taken(image: ImageResult, share: float) -> bool:
    return image.record is not None and chosen(str(image.record.input.get("fingerprint")), share)


def _compared(first: ImageResult, second: ImageResult, model: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Compare two segmentations of one image and record it in the first one's record and run, unless that is there."""
    from unetpp_workflows.tracking import log_segmentation

    assert first.folder is not None and first.record is not None
    if second.status != "done" or second.record is None or second.folder is None:
        raise UnetppError(second.message or f"the shadow is {second.status}")
    # Read again: the record may have been written since the summary was made.
    record = ImageRecord.read(first.folder) or first.record
    before = record.shadow
    if before is not None and before["key"] == second.record.key:
        return before
    compared = {**model, "key": second.record.key, "run": second.record.tracking_run, **_agreement(first, second)}
    record = replace(record, shadow=compared)
    if record.tracking_run is not None and config.tracking.enabled:
        log_segmentation(record, first.folder, tracking_uri=config.tracking.uri)
    record.write(first.folder)
    return compared


def _agreement(first: ImageResult, second: ImageResult) -> dict[str, Any]:
    """Count shard by shard: agreement, px, and the IoU of both models' pixels per class name."""
    from unetpp.job import SegmentJob

    assert first.folder is not None and second.folder is not None
    mine, theirs = SegmentJob.load(first.folder), SegmentJob.load(second.folder)
    assert mine is not None and theirs is not None
    if (mine.plan.height, mine.plan.width) != (theirs.plan.height, theirs.plan.width):
        raise UnetppError("both models work at another pixel size, so their labels cannot be compared pixel by pixel")
    values = {info.name: info.value for info in theirs.classes}
    if set(values) != {info.name for info in mine.classes}:
        raise UnetppError(f"the models' classes differ: {', '.join(values)}")
    total = 0
    common, either = dict.fromkeys(values, 0), dict.fromkeys(values, 0)
    for shard in mine.plan.shards():
        a, b = mine.store.read(shard.box), theirs.store.read(shard.box)
        both = (a != NO_DATA) & (b != NO_DATA)
        total += int(both.sum())
        for info in mine.classes:
            in_a, in_b = (a == info.value) & both, (b == values[info.name]) & both
            common[info.name] += int(np.count_nonzero(in_a & in_b))
            either[info.name] += int(np.count_nonzero(in_a | in_b))
    same = sum(common.values())
    iou = {name: common[name] / either[name] for name in values if either[name]}
    if not total:
        raise UnetppError("no pixel is valid in both segmentations")
    return {"agreement": same / total, "px": total, "iou": iou}
