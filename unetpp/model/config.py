"""The switches of a network and nothing that they build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from unetpp.errors import ArchitectureError

Conv = Literal["pw_dw", "dw_pw", "standard"]
Norm = Literal["batch", "none"]
Upsample = Literal["bilinear", "nearest", "deconv"]


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Shape of a UNet++ grid (or of the U-Net with the same switches).

    Attributes:
        bands: input channels.
        classes: output channels; 1 means one logit per pixel (foreground where it is > 0).
        filters: channels of level 0, 1, ..., depth.
        conv: `pw_dw` (pointwise then depthwise), `dw_pw` (the textbook order) or `standard` 3x3.
        norm: "batch" (running statistics at inference, folded at deploy) or "none" (biases instead). Norms that look
            at the statistics of a tile (instance, group, layer) do not exist here: tiled and whole-image results
            would differ.
        upsample: x2 "bilinear", "nearest", or a learned 2x2 "deconv".
        deep_supervision: a head on every X^{0,1..depth} instead of only the last.
        level: the deepest head kept; less than the depth for a pruned network. None means the depth.
    """

    bands: int = 3
    classes: int = 2
    filters: tuple[int, ...] = (32, 64, 128, 256, 512)
    conv: Conv = "pw_dw"
    norm: Norm = "batch"
    upsample: Upsample = "bilinear"
    deep_supervision: bool = True
    level: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("conv", Conv), ("norm", Norm), ("upsample", Upsample)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ArchitectureError(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(allowed))}")
        if self.bands < 1 or self.classes < 1 or self.classes > 255:
            raise ArchitectureError(f"bands={self.bands}, classes={self.classes}: need bands >= 1 and classes 1..255")
        if len(self.filters) < 2 or min(self.filters) < 1:
            raise ArchitectureError(f"filters={self.filters}: give at least two positive widths, finest level first")
        if self.level is not None and not 1 <= self.level <= self.depth:
            raise ArchitectureError(f"level={self.level}: a grid of depth {self.depth} has heads 1..{self.depth}")
        if self.level not in (None, self.depth) and not self.deep_supervision:
            raise ArchitectureError(f"level={self.level}: without deep supervision only head {self.depth} exists")

    @property
    def depth(self) -> int:
        return len(self.filters) - 1

    @property
    def last(self) -> int:
        """Index j of the deepest head X^{0,j} that is kept."""
        return self.depth if self.level is None else self.level

    @property
    def multiple(self) -> int:
        """Sides are padded to a multiple of this; a pruned network keeps its parent's."""
        return int(2**self.depth)

    @classmethod
    def paper(cls) -> GridConfig:
        """Return the paper's switches: 1 band, 1 class, standard convolutions with bias, no norm, one head."""
        return cls(bands=1, classes=1, conv="standard", norm="none", upsample="deconv", deep_supervision=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GridConfig:
        """Build from JSON values; unknown keys raise `ArchitectureError`."""
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(values) - known)
        if unknown:
            raise ArchitectureError(
                f"architecture key {unknown[0]!r} is unknown; known keys: {', '.join(sorted(known))}"
            )
        return cls(**{**values, "filters": tuple(values.get("filters", cls.filters))})
