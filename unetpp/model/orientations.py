"""The orientations in which an image can be shown to a network; knows how to turn tensors, imports none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from torch import Tensor

Tta = Literal["none", "mirror", "flips", "d4"]
"""The image as it is; also mirrored left-right, as training images are; also up-down, both; also these transposed."""
TTAS: Final[tuple[str, ...]] = get_args(Tta)


class Turn(NamedTuple):
    """One orientation: first mirrored along rows and columns, then transposed."""

    up_down: bool
    left_right: bool
    transposed: bool

    def of(self, x: Tensor, axes: tuple[int, int]) -> Tensor:
        """Return `x`, with height and width at `axes`, in this orientation."""
        x = x.flip(self._mirrored(axes))
        return x.transpose(*axes) if self.transposed else x

    def undone(self, x: Tensor, axes: tuple[int, int]) -> Tensor:
        """Return the `x` of which `of` made this one."""
        x = x.transpose(*axes) if self.transposed else x
        return x.flip(self._mirrored(axes))

    def _mirrored(self, axes: tuple[int, int]) -> list[int]:
        return [axis for axis, mirrored in zip(axes, (self.up_down, self.left_right), strict=True) if mirrored]


def turns(tta: Tta) -> tuple[Turn, ...]:
    """Return the orientations, the image's own first."""
    sides = [False] if tta == "none" else [False, True]
    up_down = [False, True] if tta in ("flips", "d4") else [False]
    transposed = [False, True] if tta == "d4" else [False]
    return tuple(Turn(a, b, t) for t in transposed for a in up_down for b in sides)
