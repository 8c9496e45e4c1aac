"""Small model packages with exact or random weights, built once per test session."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.package import ClassInfo, ModelSpec, Package, save_package

MakePackage = Callable[..., Package]


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> MakePackage:
    """Return make(integer=False, network="unetplusplus", spec={}, **config): a package with fixed random weights."""
    numbers = itertools.count()

    def make(
        *, integer: bool = False, network: str = "unetplusplus", spec: dict[str, Any] | None = None, **config: Any
    ) -> Package:
        architecture = GridConfig(**{"filters": (4, 8, 8), "classes": 3, **config})
        level, architecture = architecture.level, dataclasses.replace(architecture, level=None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = (UNet if network == "unet" else UNetPlusPlus)(architecture).eval()
            if integer:
                _set_integers(model)
            else:
                _set_statistics(model)
                _centre_logits(model)
        if level is not None:
            assert isinstance(model, UNetPlusPlus)
            model = model.prune(level)
        return save_package(
            Path(tmp_path_factory.mktemp(f"model{next(numbers)}")),
            model,
            _spec(model.config, network, integer, spec or {}),
            "A small network for tests.",
        )

    return make


def _spec(config: GridConfig, network: str, integer: bool, changes: dict[str, Any]) -> ModelSpec:
    labels = 2 if config.classes == 1 else config.classes
    values: dict[str, Any] = {
        "name": "small",
        "architecture": config,
        "network": network,
        "classes": tuple(ClassInfo(value=5 * k + 2, name=f"class {k}", color=(k, k, k)) for k in range(labels)),
        "bands": tuple(f"band {b}" for b in range(config.bands)),
        "mean": ((0.0 if integer else 123.675),) * config.bands,
        "std": ((1.0 if integer else 58.395),) * config.bands,
        **changes,
    }
    return ModelSpec(**values)


def _set_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def _centre_logits(model: UNetPlusPlus | UNet) -> None:
    """Give every class a share of a noise image; random heads often give it all to one."""
    logits = model.heads(torch.randn(1, model.config.bands, 96, 96))
    for head, values in zip(model.head_convs.values(), logits, strict=True):
        assert isinstance(head, nn.Conv2d) and head.bias is not None
        head.bias -= values.mean((0, 2, 3))


@torch.no_grad()
def _set_integers(model: nn.Module) -> None:
    """Weights in {-1, 0, 1}, half of them 0: with few layers every sum is exact in float32."""
    for parameter in model.parameters():
        parameter.copy_(torch.randint(-1, 2, parameter.shape) * torch.randint(0, 2, parameter.shape))
