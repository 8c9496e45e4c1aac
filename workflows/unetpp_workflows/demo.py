"""The shortest way from an installation to segmented images: what `unetpp demo` does, in its order; computes nothing.

1. registers the bundled models and makes them champions   2. segments a slide and a scene with them, on Ray
3. and 4., outputs and MLflow runs, are what every segmentation writes
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from unetpp.errors import PromotionError
from unetpp_workflows.cli_options import DONE, PART_FAILED
from unetpp_workflows.summary import ImageResult, Summary, print_summary
from unetpp_workflows.truth import Truth

SLIDE, SCENE = "cmu-1-small-region", "kampala-z19"
_MODEL_OF = {"slide": "nuclei", "scene": "landcover"}


@dataclass(frozen=True)
class DemoImage:
    """One image of the demo: what it is, the model it is for and its known labels, where there are any."""

    path: Path
    model: str
    note: str
    truth: Truth | None = None


@dataclass
class Choice:
    """The demo's images, and why real ones are missing where they are."""

    images: list[DemoImage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def run_demo(output: Path, console: Console) -> int:
    """Do everything and say where it lies; returns the exit code."""
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    tracking = f"sqlite:///{(output / 'mlflow' / 'mlflow.db').absolute()}"
    _say(console, "1. Models into the MLflow registry")
    for name, version in register_bundled(tracking):
        _say(console, f"   models:/{name}/{version} is models:/{name}@champion")
    _say(console, "2. Images")
    choice = choose_images(output / "images")
    for reason in choice.missing:
        _say(console, f"   not there: {reason}")
    for image in choice.images:
        _say(console, f"   {image.path.name}: {image.note}")
    summaries = list(_segment_all(choice.images, output, tracking, console))
    _tell(summaries, output, tracking, time.perf_counter() - started, console)
    return PART_FAILED if any(summary.exit_code for summary in summaries) else DONE


def register_bundled(tracking_uri: str) -> Iterator[tuple[str, str]]:
    """Register every bundled model, give it the alias champion, and yield name and version."""
    from unetpp.package import bundled_package
    from unetpp_workflows.promotion import rollback
    from unetpp_workflows.registry import CHAMPION, register_package, set_alias

    for name in _MODEL_OF.values():
        version = register_package(bundled_package(name), tracking_uri=tracking_uri)
        try:
            set_alias(name, CHAMPION, version, tracking_uri=tracking_uri)
        except PromotionError:  # another release's model: it becomes @previous, on record
            rollback(name, to=version, outcome="set by hand", tracking_uri=tracking_uri)
        yield name, version


def choose_images(folder: Path) -> Choice:
    """Take a real slide and a real scene; what is missing is replaced by stained tissue and by drawn images."""
    from unetpp_workflows import samples

    choice = Choice()
    slide = samples.fetch(SLIDE)
    if slide.path is not None:
        choice.images.append(DemoImage(slide.path, _MODEL_OF["slide"], f"real slide ({slide.sample.licence})"))
    else:
        choice.missing.append(slide.reason or SLIDE)
        tissue = samples.stained_tissue(folder)
        drawn = samples.synthetic_slide(folder)
        choice.images += [
            DemoImage(tissue, _MODEL_OF["slide"], "real stained tissue that scikit-image carries; no pixel size"),
            DemoImage(drawn.path, _MODEL_OF["slide"], "SYNTHETIC slide, drawn", Truth(drawn.truth, {"nucleus": 1})),
        ]
    scene = samples.fetch(SCENE)
    truth = samples.fetch(scene.sample.truth) if scene.sample.truth else None
    if scene.path is not None:
        known = Truth(truth.path, dict(scene.sample.classes)) if truth and truth.path else None
        note = f"real scene, not seen in training ({scene.sample.licence})"
        choice.images.append(DemoImage(scene.path, _MODEL_OF["scene"], note, known))
    else:
        choice.missing.append(scene.reason or SCENE)
        drawn_scene = samples.synthetic_scene(folder)
        land = Truth(drawn_scene.truth)
        choice.images.append(DemoImage(drawn_scene.path, _MODEL_OF["scene"], "SYNTHETIC scene, drawn", land))
    return choice


def _segment_all(images: list[DemoImage], output: Path, tracking: str, console: Console) -> Iterator[Summary]:
    """Segment the images of each model in one call; all calls share one Ray session."""
    from unetpp_workflows.config import load_config
    from unetpp_workflows.pipeline import segment

    for model in dict.fromkeys(image.model for image in images):
        mine = [image for image in images if image.model == model]
        _say(console, f"   models:/{model}@champion on {', '.join(image.path.name for image in mine)}")
        yield segment(
            [image.path for image in mine],
            f"models:/{model}@champion",
            output,
            config=load_config(options={"tracking.uri": tracking, "executor.kind": "ray"}),
            truths={str(image.path): image.truth for image in mine if image.truth},
            console=console,
        )


def _tell(summaries: list[Summary], output: Path, tracking: str, seconds: float, console: Console) -> None:
    images = [image for summary in summaries for image in summary.images]
    _say(console, "3. Results")
    faults = tuple(fault for summary in summaries for fault in summary.faults)
    print_summary(Summary(tuple(images), seconds, faults), console)
    for image in images:
        for line in _lines(image):
            _say(console, line)
    _say(console, "4. Look")
    _say(console, f"   runs and models   {_mlflow()} ui --backend-store-uri {tracking}")
    _say(console, f"   again             the same command; everything finished is reused ({output})")


def _lines(image: ImageResult) -> Iterator[str]:
    record, folder = image.record, image.folder
    if record is None or folder is None:
        return
    yield f"   {image.name}"
    for name, value in (record.iou or {}).items():
        yield f"      IoU of {name} against the known labels: {value:.3f}"
    for name, path in sorted(record.outputs.items()):
        yield f"      {name:<12} {folder / path}"
    if record.tracking_run:
        yield f"      MLflow run   {record.tracking_run}"


def _mlflow() -> str:
    """Return the command `mlflow` of this installation; its pages come with the extra "server"."""
    script = Path(sys.executable).with_name("mlflow")
    if not script.exists():
        return "pip install 'unetpp[server]' && mlflow"
    return os.path.relpath(script) if Path.cwd() in script.parents else str(script)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
