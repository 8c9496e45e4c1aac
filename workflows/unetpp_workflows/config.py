"""Everything a run can be told, as one frozen TOML-shaped model; knows names and ranges, runs and opens nothing.

defaults  <  run.toml  <  options of the command  <  --set section.key=value
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from unetpp.errors import ConfigError, RegionError, SpacingError, UnetppError
from unetpp.geometry import Spacing
from unetpp.io.base import VRT, fingerprint, other_files
from unetpp.io.remote import is_remote, local_path
from unetpp.io.remote_image import versions
from unetpp.maps import MAPS, MapName, ordered
from unetpp.region import parse_region

M = TypeVar("M", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputConfig(_Section):
    """How the images are read: pixel spacing where the files do not say it, and which pixels count."""

    spacing: str | None = None
    mask: str | None = None
    region: str | None = None
    tissue: Literal["auto", "none"] = "auto"

    @field_validator("spacing", mode="before")
    @classmethod
    def _has_unit(cls, value: object) -> object:
        if value is not None:
            try:
                Spacing.parse(str(value))
            except SpacingError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("mask", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("region")
    @classmethod
    def _is_region(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_region(value)
            except RegionError as error:
                raise ValueError(str(error)) from None
        return value

    def parsed_spacing(self) -> Spacing | None:
        return Spacing.parse(self.spacing) if self.spacing else None


class TilingConfig(_Section):
    """Sides in pixels: `core` is what one network call writes, `shard` what one task writes (a multiple of core).

    "auto" takes what an image's size is computed fastest with, see `unetpp.tiling`.
    """

    core: Annotated[int, Field(ge=16)] | Literal["auto"] = "auto"
    shard: int | Literal["auto"] = "auto"


class EngineConfig(_Section):
    """What computes: the engine, its precision, its threads per worker and in how many orientations each tile is seen.

    All are part of the result's key. `tta` (test-time augmentation) averages the probabilities of 2 ("mirror",
    left-right: for images with an up), 4 ("flips") or 8 mirrored and turned tiles ("d4"), in as many times the time.
    """

    name: Literal["auto", "triton", "native", "openvino", "torch"] = "auto"
    precision: Literal["auto", "fp32", "fp16", "bf16", "int16", "int8"] = "auto"
    threads: int = Field(default=1, ge=1)
    tta: Literal["none", "mirror", "flips", "d4"] = "none"


class ExecutorConfig(_Section):
    """Who computes; never changes a result. `workers` 0 means one per CPU core (or per GPU).

    `gpus` is what each of Ray's workers has of a GPU, by default its share of those that there are when a run begins:
    a cluster that starts its GPUs when asked needs it.
    """

    kind: Literal["local", "ray"] = "local"
    workers: int = Field(default=0, ge=0)
    gpus: float | None = Field(default=None, gt=0, le=1)
    attempts: int = Field(default=3, ge=1)
    address: str | None = None


class TrackingConfig(_Section):
    """Where models come from and runs are recorded; without a URI a SQLite file of this user (UNETPP_HOME)."""

    uri: str | None = None
    enabled: bool = True


class TruthConfig(_Section):
    """Label raster to score against: a file, or a folder with one of each image's name; 255 is ignored.

    `classes` maps the model's class names to the raster's values; without it the model's own values count.
    """

    path: Path | None = None
    classes: dict[str, int] = Field(default_factory=dict)


Format = Literal["cog", "ome-tiff", "ome-zarr-0.4", "geojson", "geojson.gz", "gpkg", "geoparquet", "flatgeobuf"]


class OutputConfig(_Section):
    """What is written of each image beside its labels.

    Formats and instances never change a pixel, so that more can be asked for later. Without `formats`, images with a
    CRS get cog, geojson and gpkg, others geojson. With `instances`, objects are split, touching ones apart, measured,
    listed in a table, and written as the polygons. `probabilities` and `uncertainty` are maps of the same pass as the
    labels: asked for later, that pass is made again. `into_source` also copies the labels into an OME-Zarr 0.5 source.
    """

    formats: tuple[Format, ...] | None = None
    instances: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    into_source: bool = False

    @property
    def maps(self) -> tuple[MapName, ...]:
        return ordered(name for name in MAPS if getattr(self, name))

    @field_validator("formats", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class ShadowConfig(_Section):
    """A second model that segments a share of the images unseen, to be compared; never changes a result."""

    model: str = ""
    share: float = Field(default=0.1, gt=0, le=1)


class MetricsConfig(_Section):
    """Where a run's Prometheus metrics go: a port of this machine (`host` 0.0.0.0: of all networks), a text file.

    `every`: hours from one run to the next, where a schedule starts them: alerts then tell of one that does not come.
    """

    port: int | None = Field(default=None, ge=1, le=65535)
    host: str = "127.0.0.1"
    file: Path | None = None
    every: float | None = Field(default=None, gt=0)


class RunConfig(_Section):
    """One `unetpp segment` call, without its inputs and its output folder."""

    model: str = ""
    input: InputConfig = InputConfig()
    tiling: TilingConfig = TilingConfig()
    engine: EngineConfig = EngineConfig()
    executor: ExecutorConfig = ExecutorConfig()
    tracking: TrackingConfig = TrackingConfig()
    truth: TruthConfig = TruthConfig()
    output: OutputConfig = OutputConfig()
    shadow: ShadowConfig = ShadowConfig()
    metrics: MetricsConfig = MetricsConfig()

    def result_hash(self, truth: Path | None = None) -> str:
        """Return the SHA-256 (hex) of every setting that can change a result; masks and polygons count by content.

        Args:
            truth: an image's own raster of known labels, where `truth.path` is a folder or it was given apart. It
                counts by its time: an archive's rasters are too many to be read by every call.
        """
        values = self.model_dump(mode="json", include={"input", "tiling", "engine", "truth"})
        if self.engine.tta == "none":
            del values["engine"]["tta"]  # the hash of versions that had none
        if self.input.region is None:
            del values["input"]["region"]
        elif (file := parse_region(self.input.region).file) is not None:
            values["input"]["region_sha256"] = _content(file)
        if self.input.mask is not None and is_remote(self.input.mask):
            values["input"]["mask"] = versions(self.input.mask)
        for section, key in (("input", "mask"), ("truth", "path")):
            named = values[section][key]
            path = local_path(named) if isinstance(named, str) and not is_remote(named) else None
            if path and path.is_file():
                values[section][key] = _content(path)
        if (parts := _parts_of_mask(self.input.mask)) is not None:
            values["input"]["mask_parts"] = parts
        if truth is not None and truth != self.truth.path and truth.is_file():
            values["truth"]["path"] = f"{truth.name} {truth.stat().st_size} {truth.stat().st_mtime_ns}"
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _parts_of_mask(mask: str | None) -> str | None:
    """Return the fingerprint of a mask on this machine that is more than a file: a Zarr folder, a mosaic, a band list.

    None for one that does not open, which is said where the image is prepared.
    """
    if mask is None or is_remote(mask):
        return None
    path = local_path(mask)
    if path.is_dir() or path.suffix.lower() == ".toml":
        with suppress(UnetppError):
            return fingerprint(path)
    return None


def _content(file: Path) -> str:
    """Return the SHA-256 (hex) of a file and of what belongs to it; rasters of a VRT, maybe large, count by time."""
    digest = hashlib.sha256(file.read_bytes())
    for other in other_files(file):
        facts = other.stat()
        virtual = file.suffix.lower() == VRT
        digest.update(f"{other.name} {facts.st_size} {facts.st_mtime_ns}".encode() if virtual else other.read_bytes())
    return digest.hexdigest()


def load_config(
    file: Path | None = None, *, options: Mapping[str, object] | None = None, sets: Iterable[str] = ()
) -> RunConfig:
    """Merge a TOML file, options by dotted name (None: not given) and `a.b=c` settings.

    Raises:
        ConfigError: The file cannot be read, or a key or value is not one this version knows.
    """
    values: dict[str, Any] = read_toml(file) if file else {}
    for name, value in (options or {}).items():
        if value is not None:
            _put(values, name, value)
    for setting in sets:
        apply_setting(values, setting)
    return validate(RunConfig, values, source=str(file) if file else "configuration")


def read_toml(file: Path) -> dict[str, Any]:
    """Return a TOML file's tables; raises `ConfigError` naming the file and, for bad TOML, the line."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: not readable as TOML: {error}") from None


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put one `a.b=c` into nested tables; `c` is a TOML value, or else a bare string."""
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {setting!r} is not section.key=value; write it like --set engine.threads=2")
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    _put(values, name.strip(), value)


def validate(model: type[M], values: Mapping[str, Any], *, source: str) -> M:
    """Build the model; raises `ConfigError` with one line that names the first wrong key and the nearest right one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(model, error.errors()[0])}") from None


def _put(values: dict[str, Any], name: str, value: object) -> None:
    *sections, key = name.split(".")
    for depth, section in enumerate(sections, 1):
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"{name!r}: {section!r} is a value, not a section; set {'.'.join(sections[:depth])} itself"
            )
    values[key] = value


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    known = _names(model)
    name = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("literal[", "function-")))
    # pydantic names the member of the union that was tried last.
    name = name.removesuffix(".int").removesuffix(".constrained-int")
    if error["type"] == "model_type":
        first = _like_first(name) + "."
        key = next(other for other in known if other.startswith(first)).removeprefix(first)
        return f"{name!r} is a section; set a key of it, like {name}.{key}"
    section = isinstance(error["input"], Mapping)
    if error["type"] in ("missing", "missing_argument"):
        return f"{name} is missing" + ("" if section else f" in {error['input']!r}")
    if error["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        what = error["msg"].removeprefix("Value error, ")
        # The words of a whole section name its keys themselves.
        return f"{name}: {what}".removeprefix(": ") if section else f"{name} = {error['input']!r}: {what}"
    near = difflib.get_close_matches(_like_first(name), known, n=1, cutoff=0.5)
    near = near or [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {name!r}; {hint}"


def _like_first(name: str) -> str:
    """Return the name as that of the first of a list of sections, which is how `_names` has it."""
    return re.sub(r"\.\d+(?=\.|$)", ".0", name)


def _names(model: type, prefix: str = "") -> list[str]:
    names = []
    for name, kind in _fields(model).items():
        # A section that may be left out is one of a union, and a list of sections a tuple.
        kinds = [part for part in (kind, *get_args(kind)) if isinstance(part, type)]
        section = next((part for part in kinds if issubclass(part, BaseModel) or dataclasses.is_dataclass(part)), None)
        place = f"{prefix}{name}.0." if get_origin(kind) is tuple else f"{prefix}{name}."
        names += [prefix + name] if section is None else _names(section, place)
    return names


def _fields(model: type) -> dict[str, Any]:
    """Return the annotation of every field of a pydantic model or a dataclass."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    hints = get_type_hints(model)
    return {name: hints[name] for name in getattr(model, "__dataclass_fields__", {})}
