"""What a result says about itself, record.json beside every image's outputs; knows facts, computes nothing."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import unetpp
from unetpp.commit import STAGES
from unetpp.durable import write_file
from unetpp.errors import StoreError, VersionError
from unetpp.job import RECORD
from unetpp.store import OUTPUT_FORMAT

CONFIG = "config.json"
FORMAT = 1
Status = Literal["done", "partial", "empty", "failed"]
_PACKAGES = (
    "torch",
    "openvino",
    "llvmlite",
    "numpy",
    "zarr",
    "rasterio",
    "openslide-python",
    "openslide-bin",
    "ray",
    "mlflow-skinny",
)


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """The provenance and the figures of one segmented image.

    Attributes:
        status: done; empty (nothing in it is valid, so nothing was segmented); partial (some shards failed); failed.
        message: Why it is not done; one line.
        warning: What went wrong after the image itself was done; the next run tries that again.
        input: uri, fingerprint, kind, format, height, width, bands, dtype, spacing and its override, crs, mask,
            tissue algorithm, and orientation where viewers turn the image. No other metadata ever.
        model: name, version, alias, uri, digest, spacing, classes.
        key: SHA-256 of everything that the pixels depend on.
        config, config_hash: The resolved configuration, and the hash of its part that can change results.
        shards: total, committed (now or in an earlier call), invalid (committed without a valid pixel), valid_px,
            retries (shards that took more than one attempt), sha256 (over the shards' hashes),
            failed {"row.col": message}.
        shadow: Second model's name, version, digest, uri, key and run, with agreement (share of px valid in both that
            have the same class), px, and iou per class between both; None where it did not take part.
        seconds: read, compute and write, each summed over workers and calls, then the steps of this call.
        limited_by: the stage that decided the speed of the shards: read, compute or write.
        figures: valid_px, method (how areas were measured), and classes with name, value, color, background, px,
            area, unit ("mm2", "m2" or "px"), objects and, where asked for, instances (None for the background); empty
            when not done.
        profile: what the image looks like, see `unetpp.profile`; unusual: which of that is unlike the training images.
        outputs: Name of each product -> path relative to the image's folder.
        source_label: the label group in the source image that the labels were copied to, if they were.
        formats: that are done, also those without a file (a GeoJSON where the CRS has no place on the globe).
    """

    name: str
    status: Status
    message: str | None = None
    warning: str | None = None
    input: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_hash: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    executor: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    shards: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    iou: dict[str, float] | None = None
    shadow: dict[str, Any] | None = None
    profile: dict[str, float] = field(default_factory=dict)
    unusual: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    limited_by: str | None = None
    outputs: dict[str, str] = field(default_factory=dict)
    formats: list[str] = field(default_factory=list)
    source_label: str | None = None
    tracking_uri: str | None = None
    tracking_run: str | None = None
    started: str = ""
    finished: str = ""
    output_format: int = OUTPUT_FORMAT
    format: int = FORMAT

    @property
    def mpx_per_worker_second(self) -> float | None:
        """Valid output megapixels per second of one worker's time, in this and earlier calls; None without any."""
        seconds = sum(self.seconds.get(stage, 0.0) for stage in STAGES)
        pixels = self.shards.get("valid_px", 0)
        return pixels / seconds / 1e6 if seconds > 0 and pixels else None

    def write(self, folder: Path) -> ImageRecord:
        """Replace the folder's record.json in one step and return it as `read` will. Raises `OutputError`."""
        values = dataclasses.asdict(self)
        write_json(folder / RECORD, values)
        return ImageRecord(**json.loads(json.dumps(values)))

    @classmethod
    def read(cls, folder: Path) -> ImageRecord | None:
        """Return the folder's record, None where there is none yet.

        Raises:
            VersionError: another version of unetpp wrote it. StoreError: it does not parse.
        """
        path = folder / RECORD
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; choose another output folder") from None
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}; delete it and run the same command again") from None
        if isinstance(values, dict) and values.get("format") not in (FORMAT, None):
            raise VersionError(f"{path} was written by another version of unetpp; choose a new output folder")
        if not isinstance(values, dict) or not {"name", "status", "format"} <= values.keys():
            raise StoreError(f"{path} is damaged: no name or status; delete it and run the same command again")
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def write_json(path: Path, values: object) -> None:
    """Replace `path` by JSON in one step. Raises `OutputError`."""
    write_file(path, (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


@functools.cache
def software() -> dict[str, str]:
    """Return versions of what makes a result, with the git commit (and "-dirty") when run from a checkout."""
    versions = {"unetpp": unetpp.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit(Path(unetpp.__file__).parent.parent)
    return {**versions, "commit": commit} if commit else versions


def _git_commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
