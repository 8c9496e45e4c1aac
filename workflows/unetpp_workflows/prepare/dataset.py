"""What a labelled data set is, as TOML: where images and labels lie, what their values mean, how they are split.

Knows names and ranges; opens no image and no label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unetpp.errors import ConfigError, SpacingError
from unetpp.geometry import Spacing
from unetpp.package import ClassInfo
from unetpp_workflows.config import apply_setting, read_toml, validate

SPLITS = ("train", "val", "test")
Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]
Mark = int | str | Color
"""What stands for a class in the labels: a value, a polygon's class name, or a colour of an RGB mask."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """Where labelled images lie, what becomes of their labels, and how they are split.

    Either `images` and `labels` are patterns below the data folder, with an optional table of splits and groups by
    `key`; or `table` alone lists the images, in the columns image, labels and, where wanted, mask, ignore, annotator.

    Attributes:
        images: glob below the data folder.
        labels: path below the data folder, with {stem} for the image's file name without its ending: a mask (PNG,
            TIFF, GeoTIFF, Zarr, OME-Zarr) or polygons (GeoJSON and QuPath's, also gzipped,
            GeoPackage, GeoParquet).
        mask, ignore: likewise, pixels that count or do not: an image (not 0) or polygons. Only with `images`.
        table: CSV or Parquet below the data folder, one row per image (and annotator). Its images may also be URIs (s3,
            gs, http); labels and masks are files.
        key: its column with the image's stem, where `images` is a glob.
        split: its column with train, val or test.
        group: its column with what must not be split: patient, slide, scene. Where none is named and there is none,
            each image is one.
        stratum: its column that figures are given by (the kind of stain, say); the group where empty.
        group_pattern: without a table, a regular expression whose first group names the image's group.
        validation, test: values of the split column that mean val and test, or else names of groups, which must be
            there. Everything else is training, where there is no split column; in a split column it must be called
            train.
        shares: without either, parts of the images per split, filled group by group in an order drawn from `seed`.
        guard: pixels left unlabelled between the parts of the one group that there is; without it, one group is an
            error. At least the network's halo.
        instances: masks number objects, every value > 0 is the one class that is not background; of polygons, each is
            an object.
        label_map: value in the mask -> class index; the short form of `labels` in [[classes]].
        no_data: marks that do not count: values, colours, polygon classes. Unlisted marks do not count either, but are
            reported; nor do NaN and a TIFF's own nodata value, unless it stands for a class.
        property: polygons' property with the class name. Empty: QuPath's classification, or the one class there is.
        outside: what lies outside all polygons, background (where a class is) or ignore. Of a file without a feature
            that is the whole image; to ignore it is an error.
        annotators: several rows of one image: "majority" of those who labelled a pixel, ties do not count; "separate"
            keeps each row as an image of its own, in one group.
        spacing: pixel size to train at; every image is resampled to it. Without it, level 0 as it is.
        image_spacing: the images' own, where files state none or a wrong one.
        tissue: auto leaves unlabelled what is not tissue on slides, as `segment` does.
        side: of a stored patch in pixels.
        context: rings of unlabelled patches that are kept around labelled ones, for crops that look past them; together
            at least the network's halo wide.
        seed: of the split by shares.
    """

    images: str = ""
    labels: str = ""
    mask: str = ""
    ignore: str = ""
    table: str | None = None
    key: str = "id"
    split: str = "split"
    group: str = "group"
    stratum: str = ""
    group_pattern: str = "(.*)"
    validation: tuple[str, ...] = ("val",)
    test: tuple[str, ...] = ("test",)
    shares: dict[Literal["train", "val", "test"], float] = Field(default_factory=dict)
    guard: int = Field(default=0, ge=0)
    instances: bool = False
    label_map: dict[int, int] = Field(default_factory=dict)
    no_data: tuple[Mark, ...] = ()
    property: str = ""
    outside: Literal["background", "ignore"] = "background"
    annotators: Literal["majority", "separate"] = "majority"
    spacing: str | None = None
    image_spacing: str | None = None
    tissue: Literal["auto", "none"] = "auto"
    side: int = Field(default=256, ge=16, le=2048, multiple_of=16)
    context: int = Field(default=1, ge=0)
    seed: int = 0

    @field_validator("spacing", "image_spacing")
    @classmethod
    def _has_unit(cls, value: str | None) -> str | None:
        try:
            Spacing.parse(value) if value is not None else None
        except SpacingError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("images")
    @classmethod
    def _is_below(cls, value: str) -> str:
        if Path(value).is_absolute():
            raise ValueError("give a pattern below the data folder, which --data names")
        return value

    @field_validator("labels", "mask", "ignore")
    @classmethod
    def _is_template(cls, value: str) -> str:
        try:
            value.format(stem="")
        except (LookupError, ValueError, AttributeError):
            raise ValueError("write {stem} for the image's name, and no other braces") from None
        return value

    @field_validator("group_pattern")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"no regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> DataSection:
        if bool(self.images) != bool(self.labels):
            raise ValueError("images and labels belong together; give both patterns, or a table with both columns")
        if not self.images and self.table is None:
            raise ValueError("name the images: images and labels as patterns, or a table with both columns")
        # Whoever wrote what would be ignored expects other groups, or fewer labels.
        unused = (
            (self.table is None, ("split", "group", "stratum"), "names a column, and there is no table"),
            (self.table is not None, ("group_pattern",), "is for images without a table; give it a column of groups"),
            (not self.images, ("mask", "ignore"), "is a pattern beside images; give the table a column of this name"),
        )
        for ignored, names, why in unused:
            for name in names if ignored else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {why}")
        if self.shares and not (abs(sum(self.shares.values()) - 1) <= 1e-6 and min(self.shares.values()) > 0):
            raise ValueError(
                f"shares {self.shares} are not positive parts of 1; write them like train = 0.8, val = 0.2"
            )
        return self


class ClassSection(_Section):
    """One class, in the order of label indices.

    Attributes:
        value: written to label arrays by a model; the index where not given.
        labels: what stands for the class in the labels. Default: `value` in a mask, `color` in an RGB mask, `name` in
            polygons.
    """

    value: int = Field(default=-1, ge=-1, le=254)
    name: str = Field(min_length=1)
    color: Color
    background: bool = False
    labels: tuple[Mark, ...] = ()


class Dataset(_Section):
    """A data set's description; a training recipe is one too."""

    name: str = ""
    data: DataSection
    classes: tuple[ClassSection, ...] = Field(min_length=2, max_length=255)

    @model_validator(mode="after")
    def _agrees(self) -> Dataset:
        marks: tuple[tuple[str, list[str | int]], ...] = (
            ("name", [c.name for c in self.classes]),
            ("value", [c.value for c in self.infos()]),
        )
        for what, values in marks:
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"two classes have the {what} {twice[0]!r}; each needs its own")
        if sum(c.background for c in self.classes) > 1:
            raise ValueError("two classes are background; one at most can be")
        if len(self.classes) == 2 and self.classes[1].background:
            # The figures that models are chosen by, and objects, are those of the second class.
            first, second = (c.name for c in self.classes)
            raise ValueError(f"of two classes the background comes first; list {second!r} before {first!r}")
        foreground = [c for c in self.classes if not c.background]
        if self.data.instances and len(foreground) > 1 and self.data.label_map:
            raise ValueError("label_map and instances exclude each other: the values of instances are numbers")
        for value, index in self.data.label_map.items():
            if not 0 <= index < len(self.classes):
                raise ValueError(
                    f"label_map: {value} = {index}, but classes have the indices 0..{len(self.classes) - 1}"
                )
        return self

    def infos(self) -> tuple[ClassInfo, ...]:
        """Return the classes as a model package holds them, in the order of indices."""
        return tuple(
            ClassInfo(value=c.value if c.value >= 0 else index, name=c.name, color=c.color, background=c.background)
            for index, c in enumerate(self.classes)
        )

    @property
    def background(self) -> int | None:
        """Index of the background class."""
        return next((index for index, c in enumerate(self.classes) if c.background), None)

    @property
    def only_foreground(self) -> int | None:
        """Index of the one class that is not background; None where there are several."""
        found = [index for index, c in enumerate(self.classes) if not c.background]
        return found[0] if len(found) == 1 else None


def load_dataset(source: str | Path, overrides: Iterable[str] = ()) -> Dataset:
    """Read a data set's TOML, a recipe's TOML, or a bundled recipe by name, with `section.key=value` overrides.

    Raises:
        ConfigError: there is no such file, or a key or value is not one this version knows.
    """
    from unetpp_workflows.recipe import RECIPES, Recipe

    path = Path(source)
    if not path.is_file():
        path = RECIPES / f"{source}.toml"
        if Path(str(source)).name != str(source) or not path.is_file():
            raise ConfigError(f"{source}: no such data set; give a TOML file that describes it, or a bundled recipe")
    values = read_toml(path)
    for setting in overrides:
        apply_setting(values, setting)
    if "train" in values or "network" in values:
        # What training would refuse is better known before hours of preparing.
        validate(Recipe, values, source=path.name)
    for key in Recipe.model_fields.keys() - Dataset.model_fields.keys():
        values.pop(key, None)
    return validate(Dataset, values, source=path.name)
