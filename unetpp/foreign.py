"""Builds our network from the weights of the usual PyTorch re-implementation of UNet++; knows tensors, no packages.

There a node X^{i,j} is `conv{i}_{j}` with conv1, bn1, conv2, bn2 (3x3 convolutions with biases), and the heads are
`final1` to `final4`, or `final` alone. Computed with x2 upsampling without aligned corners, both networks are the same
function. Many copies of that code upsample with `align_corners=True`: the weights fit, but figures move a little, so
evaluate before use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetpp.errors import ModelPackageError
from unetpp.model import GridConfig, UNetPlusPlus

_NODE = re.compile(r"conv(\d)_(\d)\.(conv|bn)([12])\.(\w+)")
_HEAD = re.compile(r"final(\d?)\.(weight|bias)")
_UNITS = {"1": "first", "2": "second"}


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: .safetensors, or what torch.save wrote, without running any code in it.

    A checkpoint that holds the weights under "state_dict" or "model", or with names that begin with "module.", is
    unwrapped.

    Raises:
        ModelPackageError: it is missing, holds more than tensors, or is none.
    """
    import pickle

    if not path.is_file():
        raise ModelPackageError(f"{path}: no such file; give a state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own words advise to load it without this protection.
        reason = "damaged, or with more than tensors in it, which could run code"
        raise ModelPackageError(f"{path} is no plain state dict: {reason}; save model.state_dict() alone") from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelPackageError(f"{path} is no plain state dict: {first}; save model.state_dict() alone") from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelPackageError(f"{path} is no plain state dict; save model.state_dict() alone")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def from_reimplementation(state: Mapping[str, Tensor]) -> UNetPlusPlus:
    """Return our network with these weights, in eval mode.

    A bias before a batch norm only shifts the mean that the norm takes away, so it goes into the running mean.

    Raises:
        ModelPackageError: a name or a shape is not the re-implementation's, or a value is NaN or past float32.
    """
    config = _config(state)
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.float().isfinite().all():
            raise ModelPackageError(f"weight {name!r} is not finite: its training diverged; give an earlier checkpoint")
        node, head = _NODE.fullmatch(name), _HEAD.fullmatch(name)
        if head:
            ours[f"head_convs.{head[1] or config.last}.{head[2]}"] = value
        elif node and node[3] == "bn":
            unit = f"nodes.{node[1]}_{node[2]}.{_UNITS[node[4]]}"
            bias = state.get(f"conv{node[1]}_{node[2]}.conv{node[4]}.bias") if node[5] == "running_mean" else None
            ours[f"{unit}.norm.{node[5]}"] = value if bias is None else value - bias
        elif node and node[5] == "weight":
            ours[f"nodes.{node[1]}_{node[2]}.{_UNITS[node[4]]}.standard"] = value
        elif not (node and node[5] == "bias"):
            raise ModelPackageError(
                f"weight {name!r} is not of the usual re-implementation (conv0_0.conv1.weight, ...)"
            )
    network = UNetPlusPlus(config)
    for name, wanted in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            ours.setdefault(name, wanted)
    try:
        network.load_state_dict(ours)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelPackageError(f"the weights do not make a UNet++ grid: {lines[-1]}") from error
    return network.eval()


def _config(state: Mapping[str, Tensor]) -> GridConfig:
    """Read bands, classes and filters from the shapes of the backbone and a head."""
    depth = -1
    while f"conv{depth + 1}_0.conv2.weight" in state:
        depth += 1
    heads = [name for name in state if name.startswith("final") and name.endswith(".weight")]
    if depth < 1 or not heads or "conv0_0.conv1.weight" not in state or "conv0_0.bn1.weight" not in state:
        raise ModelPackageError("no weights conv0_0.conv1, conv0_0.bn1 and final: not the usual re-implementation")
    return GridConfig(
        bands=int(state["conv0_0.conv1.weight"].shape[1]),
        classes=int(state[heads[0]].shape[0]),
        filters=tuple(int(state[f"conv{i}_0.conv2.weight"].shape[0]) for i in range(depth + 1)),
        conv="standard",
        norm="batch",
        upsample="bilinear",
        deep_supervision="final.weight" not in state,
    )
