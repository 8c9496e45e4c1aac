"""A trained network as a GPU runs it: bytes in, bytes out, norms folded, weights packed; knows no files and no tiles.

Between bytes and bytes there is one kernel per convolution pair. In the order pw_dw a node is three launches:

    mixed = pw1(skips) + up(pw1(low))               pointwise
    half  = pw2(relu(dw1(mixed) + b1))              depthwise_pointwise
    node  = relu(dw2(half) + b2)                    depthwise; of the last node, with the head and the decision

and in the order dw_pw two:

    half  = relu(pw1(dw1(cat(skips, up(low)))) + b1)    depthwise_pointwise
    node  = relu(pw2(dw2(half)) + b2)                   depthwise_pointwise

Standard convolutions stay torch's own. On a CPU the same module computes the plain definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetpp.errors import ShapeError
from unetpp.model.fold import fold
from unetpp.model.grid import UNetPlusPlus
from unetpp.model.layers import Node
from unetpp.model.order import Name, Step
from unetpp.model.unet import UNet
from unetpp_kernels import Resampling, packing, upsample2x
from unetpp_kernels.operations import is_packed

_OPERATORS = torch.ops.unetpp


class Deployed(nn.Module):
    """A network for inference on raw pixels, from `deploy`.

    Args to its methods: pixels (N, H, W, bands) of any real type, H and W multiples of `multiple` (`ShapeError`
    otherwise): engines pad by the network's rule before, so that a captured graph sees one shape.
    """

    def __init__(
        self,
        model: UNetPlusPlus | UNet,
        mean: Sequence[float],
        std: Sequence[float],
        values: Sequence[int],
        dtype: torch.dtype,
        packed: bool,
    ) -> None:
        super().__init__()
        folded = fold(model)  # type: ignore[type-var]  # either network, never a mixture
        self.multiple = folded.multiple
        self.bands = folded.config.bands
        self.order: tuple[Step, ...] = folded.order
        last = max(int(key) for key in folded.head_convs)
        self.final: Name = (0, last)
        self.nodes = nn.ModuleDict(
            {step.key: _node(cast(Node, folded.nodes[step.key]), step, dtype, packed) for step in self.order}
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.register_buffer("values", torch.tensor(values, dtype=torch.uint8))
        self.levels = sorted(int(key) for key in folded.head_convs)
        self.single = folded.config.classes == 1
        for level in self.levels:
            head = cast(nn.Conv2d, folded.head_convs[str(level)])
            assert head.bias is not None
            weight, bias = packing.mix(head.weight.detach(), dtype), head.bias.detach().float()
            if self.single:  # one logit: that of the second of two classes, whose first has logit 0
                weight, bias = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))
            name = "" if level == last else str(level)
            self.register_buffer(f"head{name}", weight)
            self.register_buffer(f"head{name}_bias", bias)
        self.packed = packed
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def labels(self, pixels: Tensor) -> Tensor:
        """Return (N, H, W) uint8 class values; of equal logits the first class wins."""
        return self._bytes(pixels, probabilities=False)

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return (N, classes, H, W) uint8: each class's probability in steps of 1/255."""
        return self._bytes(pixels, probabilities=True)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return (N, K, H, W) float32 logits."""
        return self._logits(self._final().finish(self._half(pixels)[0]), "head")

    @torch.no_grad()
    def heads(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every head X^{0,1..L}, deepest last; each as `logits`."""
        half, nodes = self._half(pixels)
        before = [self._logits(nodes[0, level], f"head{level}") for level in self.levels[:-1]]
        return (*before, self._logits(self._final().finish(half), "head"))

    def _logits(self, node: Tensor, head: str) -> Tensor:
        found = _OPERATORS.pointwise([node], self.get_buffer(head), None, None, False, False, "bilinear")
        found = found.to(torch.float32) + self.get_buffer(f"{head}_bias")[:, None, None]
        return cast(Tensor, found[:, 1:] if self.single else found)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `labels`."""
        return self.labels(pixels)

    def _bytes(self, pixels: Tensor, *, probabilities: bool) -> Tensor:
        node = self._final()
        taps, bias = node.last_filter()
        x, _ = self._half(pixels)
        x = node.finish(x) if taps is None else x
        buffers = [self.get_buffer(name) for name in ("head", "head_bias", "values")]
        return cast(Tensor, _OPERATORS.head(x, *buffers, taps, bias, True, probabilities, self.packed))

    def _final(self) -> _DeployedNode:
        return cast(_DeployedNode, self.nodes[f"{self.final[0]}_{self.final[1]}"])

    def _half(self, pixels: Tensor) -> tuple[Tensor, dict[Name, Tensor]]:
        """Return the last node before its last step, which the head may take over, and the nodes before it."""
        n, height, width, bands = pixels.shape
        if bands != self.bands or height % self.multiple or width % self.multiple or min(n, height, width) < 1:
            raise ShapeError(
                f"pixels {tuple(pixels.shape)}: expected (N, H, W, {self.bands}) with H and W multiples of "
                f"{self.multiple}"
            )
        x: dict[Name, Tensor] = {}
        for step in self.order:
            node = cast(_DeployedNode, self.nodes[step.key])
            sources = [x[name] for name in step.sources]
            low = None if step.low is None else x[step.low]
            if step.sources:
                half = node.start(sources, low)
            else:
                half = node.start_image(pixels, self.get_buffer("mean"), self.get_buffer("std"))
            if step.node == self.final:
                return half, x
            x[step.node] = node.finish(half)
        raise AssertionError("the order ends with the final node")


def deploy(
    model: UNetPlusPlus | UNet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    values: Sequence[int],
    dtype: torch.dtype = torch.float16,
    packed: bool | None = None,
) -> Deployed:
    """Return the network ready for fast inference.

    Args:
        model: trained; it is not changed.
        mean, std: per band, in raw sample units: the network sees (x - mean) / std.
        values: what stands for each class in `labels`, in the order of the logits; two for a network of one logit.
        dtype: float16, bfloat16 or float32 of weights and feature maps.
        packed: see `unetpp_kernels.depthwise_pointwise`.
    """
    return Deployed(model, mean, std, values, dtype, is_packed(dtype, packed))


class _DeployedNode(nn.Module):
    """H of the paper in two steps: `start` reads the sources, `finish` gives X^{i,j}."""

    first_bias: Tensor
    second_bias: Tensor
    stem: Tensor

    def __init__(self, node: Node, step: Step, dtype: torch.dtype, packed: bool) -> None:
        super().__init__()
        self.step, self.packed = step, packed
        self.mode: Resampling = "nearest" if node.first.upsample == "nearest" else "bilinear"
        self.deconv = None if node.deconv is None else node.deconv.to(dtype)
        self.taps_dtype = dtype if packed else torch.float32
        assert node.first.bias is not None and node.second.bias is not None
        self._keep("first_bias", node.first.bias.float())
        self._keep("second_bias", node.second.bias.float())
        if not step.sources:
            assert node.first.standard is not None
            outputs = node.first.standard.shape[0]
            self._keep("stem", node.first.standard.permute(2, 3, 1, 0).reshape(-1, outputs).to(dtype).contiguous())

    def start(self, sources: Sequence[Tensor], low: Tensor | None) -> Tensor:
        raise NotImplementedError

    def start_image(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return cast(Tensor, _OPERATORS.stem(pixels, mean, std, self.stem, self.first_bias, None, True))

    def finish(self, half: Tensor) -> Tensor:
        raise NotImplementedError

    def last_filter(self) -> tuple[Tensor | None, Tensor | None]:
        """Return taps and bias of the depthwise filter that `finish` is, (None, None) where it is something else."""
        return None, None

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, None if value is None else value.detach())

    def _inputs(self, sources: Sequence[Tensor], low: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        if low is not None and self.deconv is not None:
            return [*sources, self.deconv(low)], None
        return list(sources), low


class _PointwiseFirst(_DeployedNode):
    """Order pw_dw."""

    skip_mix: Tensor
    low_mix: Tensor
    first_taps: Tensor
    second_mix: Tensor
    second_taps: Tensor

    def __init__(self, node: Node, step: Step, dtype: torch.dtype, packed: bool) -> None:
        super().__init__(node, step, dtype, packed)
        first, second = node.first, node.second
        assert second.pointwise is not None and second.depthwise is not None
        self._keep("second_mix", packing.mix(second.pointwise, dtype))
        self._keep("second_taps", packing.taps(second.depthwise, self.taps_dtype))
        if step.sources:
            assert first.pointwise is not None and first.depthwise is not None
            low = _low_width(node, step)
            mix = packing.mix(first.pointwise, dtype)
            self._keep("skip_mix", mix[:, : mix.shape[1] - low].contiguous())
            self._keep("low_mix", mix[:, mix.shape[1] - low :].contiguous() if low else None)
            self._keep("first_taps", packing.taps(first.depthwise, self.taps_dtype))

    def start(self, sources: Sequence[Tensor], low: Tensor | None) -> Tensor:
        maps, low = self._inputs(sources, low)
        added = None
        if low is not None:
            added = _OPERATORS.pointwise([low], self.low_mix, None, None, False, False, self.mode)
        mixed = _OPERATORS.pointwise(maps, self.skip_mix, None, added, self.step.pooled, False, self.mode)
        found = _OPERATORS.depthwise_pointwise(
            [mixed], None, self.first_taps, None, self.second_mix, None, self.first_bias, True, False, self.mode,
            self.packed,
        )  # fmt: skip
        return cast(Tensor, found)

    def start_image(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return cast(Tensor, _OPERATORS.stem(pixels, mean, std, self.stem, self.first_bias, self.second_mix, True))

    def finish(self, half: Tensor) -> Tensor:
        found = _OPERATORS.depthwise(half, self.second_taps, self.second_bias, True, 1, 1, self.packed)
        return cast(Tensor, found)

    def last_filter(self) -> tuple[Tensor | None, Tensor | None]:
        return self.second_taps, self.second_bias


class _DepthwiseFirst(_DeployedNode):
    """Order dw_pw."""

    first_taps: Tensor
    first_mix: Tensor
    phases: Tensor | None
    second_taps: Tensor
    second_mix: Tensor

    def __init__(self, node: Node, step: Step, dtype: torch.dtype, packed: bool) -> None:
        super().__init__(node, step, dtype, packed)
        units = [("second", node.second)] + ([("first", node.first)] if step.sources else [])
        for name, unit in units:
            assert unit.pointwise is not None and unit.depthwise is not None
            self._keep(f"{name}_mix", packing.mix(unit.pointwise, dtype))
            self._keep(f"{name}_taps", packing.taps(unit.depthwise, self.taps_dtype))
        low = _low_width(node, step)
        if low:
            assert node.first.depthwise is not None
            self._keep("phases", packing.phases(node.first.depthwise[-low:], self.mode, self.taps_dtype))
        else:
            self._keep("phases", None)

    def start(self, sources: Sequence[Tensor], low: Tensor | None) -> Tensor:
        maps, low = self._inputs(sources, low)
        if self.step.pooled:
            maps = [F.max_pool2d(x, 2) for x in maps]
        found = _OPERATORS.depthwise_pointwise(
            maps, low, self.first_taps, self.phases, self.first_mix, self.first_bias, None,
            False, True, self.mode, self.packed,
        )  # fmt: skip
        return cast(Tensor, found)

    def finish(self, half: Tensor) -> Tensor:
        found = _OPERATORS.depthwise_pointwise(
            [half], None, self.second_taps, None, self.second_mix, self.second_bias, None, False, True, self.mode,
            self.packed,
        )  # fmt: skip
        return cast(Tensor, found)


class _Standard(_DeployedNode):
    """Full 3x3 convolutions: torch's own kernels are the best there are."""

    first_weight: Tensor
    second_weight: Tensor

    def __init__(self, node: Node, step: Step, dtype: torch.dtype, packed: bool) -> None:
        super().__init__(node, step, dtype, packed)
        for name, unit in (("first_weight", node.first), ("second_weight", node.second)):
            assert unit.standard is not None
            self._keep(name, unit.standard.to(dtype).contiguous(memory_format=torch.channels_last))

    def start(self, sources: Sequence[Tensor], low: Tensor | None) -> Tensor:
        maps, low = self._inputs(sources, low)
        if self.step.pooled:
            maps = [F.max_pool2d(x, 2) for x in maps]
        if low is not None:
            maps.append(upsample2x(low, self.mode))
        x = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        return self._convolved(x, self.first_weight, self.first_bias)

    def finish(self, half: Tensor) -> Tensor:
        return self._convolved(half, self.second_weight, self.second_bias)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, weight, bias.to(x.dtype), padding=1))


def _node(node: Node, step: Step, dtype: torch.dtype, packed: bool) -> _DeployedNode:
    kinds: dict[str, Callable[..., _DeployedNode]] = {
        "pw_dw": _PointwiseFirst,
        "dw_pw": _DepthwiseFirst,
        "standard": _Standard,
    }
    return kinds[node.second.conv](node, step, dtype, packed)


def _low_width(node: Node, step: Step) -> int:
    """Return the channels of the upsampled source, 0 where there is none or a learned upsampling makes it full size."""
    if step.low is None or node.deconv is not None:
        return 0
    weight = node.first.pointwise
    assert weight is not None
    outputs, inputs = weight.shape[:2]
    return inputs - len(step.sources) * outputs
