"""Turns a trained network into the equal network without BatchNorm; knows weights, not engines."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import nn

from unetpp.model.grid import UNetPlusPlus
from unetpp.model.layers import ConvUnit
from unetpp.model.unet import UNet

Network = TypeVar("Network", UNetPlusPlus, UNet)


def fold(model: Network) -> Network:
    """Return an eval copy whose running BatchNorm statistics are folded into the convolutions before them.

    With s = gamma / sqrt(var + eps), norm(conv(x)) = (s * w) conv x + (beta - s * mean): the last convolution of
    each unit takes the scale, and the unit gets a bias. The copy computes the same function up to rounding.
    """
    folded = type(model)(dataclasses.replace(model.config, norm="none"))
    reference = next(model.parameters())
    folded.to(device=reference.device, dtype=reference.dtype)
    state = {name: value for name, value in model.state_dict().items() if ".norm." not in name}
    for name, unit in model.named_modules():
        if isinstance(unit, ConvUnit) and unit.norm is not None:
            state.update({f"{name}.{key}": value for key, value in _folded_unit(unit).items()})
    folded.load_state_dict(state)
    return folded.eval()


@torch.no_grad()
def _folded_unit(unit: ConvUnit) -> dict[str, torch.Tensor]:
    norm = unit.norm
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    name = {"standard": "standard", "pw_dw": "depthwise", "dw_pw": "pointwise"}[unit.conv]
    weight = getattr(unit, name)
    return {name: weight * scale[:, None, None, None], "bias": norm.bias - norm.running_mean * scale}
