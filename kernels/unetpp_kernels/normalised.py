"""A map behind its batch norm and ReLU that need not be stored: who reads it makes it anew; knows no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from unetpp_kernels import gradients


@dataclass
class Normalised:
    """relu((x - mean) * scale + shift), in x's type, of a training batch.

    Attributes:
        x: (N, C, H, W), what the norm reads.
        stand_in: the map for autograd: of its shape and type, and without its values. The gradients that readers of
            the map find are its own; from their sum it finds those of x and of the norm's weight and bias.
        mean, scale, shift: (C,) in the type of sums; constants to autograd.
    """

    x: Tensor
    stand_in: Tensor
    mean: Tensor
    scale: Tensor
    shift: Tensor
    _stored: Tensor | None = field(default=None, repr=False)

    def stored(self) -> Tensor:
        """Return the map as a tensor, for readers that cannot make it; it is computed once."""
        if self._stored is None:
            found = gradients.Stored.apply(  # type: ignore[no-untyped-call]
                self.stand_in, self.x, self.mean, self.scale, self.shift
            )
            self._stored = cast(Tensor, found)
        return self._stored


Map = Tensor | Normalised


def stored(source: Map) -> Tensor:
    """Return a map as a tensor."""
    return source.stored() if isinstance(source, Normalised) else source


def read(source: Map) -> Tensor:
    """Return what a kernel reads of a map."""
    return source.x if isinstance(source, Normalised) else source


def pointwise(
    sources: Sequence[Normalised], mix: Tensor, bias: Tensor | None, added: Tensor | None, mode: str
) -> Tensor:
    """Return the pointwise convolution of maps that are made as they are read; mix (O, C) and bias in fp32."""
    found = gradients.NormalisedPointwise.apply(  # type: ignore[no-untyped-call]
        mix,
        bias,
        added,
        mode,
        len(sources),
        *(source.stand_in for source in sources),
        *(source.x for source in sources),
        *_vectors(sources),
    )
    return cast(Tensor, found)


def depthwise_pointwise_moments(sources: Sequence[Normalised], *settings: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pair of convolutions of maps that are made as they are read, and its moments.

    settings: as of `gradients.DepthwisePointwiseMoments`; where it has `low`, that is the last source.
    """
    xs, stand_ins = [source.x for source in sources], [source.stand_in for source in sources]
    found = gradients.DepthwisePointwiseMoments.apply(  # type: ignore[no-untyped-call]
        *settings, *stand_ins, *xs, *_vectors(sources)
    )
    return cast(tuple[Tensor, Tensor, Tensor], found)


def max_pool(source: Normalised) -> Tensor:
    """Return the 2x2 max pooling of a map that is made as it is read."""
    found = gradients.NormalisedMaxPool.apply(  # type: ignore[no-untyped-call]
        source.stand_in, source.x, source.mean, source.scale, source.shift
    )
    return cast(Tensor, found)


def _vectors(maps: Sequence[Normalised]) -> list[Tensor]:
    """Return mean, scale and shift of all maps' channels, one behind the other."""
    return [_joined([getattr(m, name) for m in maps]) for name in ("mean", "scale", "shift")]


def _joined(vectors: Sequence[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(list(vectors))
