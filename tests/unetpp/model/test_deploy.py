"""The deployed network against the trained one: both orders, every switch, raw pixels in, bytes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unetpp.errors import ShapeError
from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.model.deploy import Deployed, deploy

MEAN, STD = (120.0, 130.0, 110.0), (50.0, 60.0, 40.0)
SWITCHES: list[dict[str, Any]] = [
    {},
    {"conv": "dw_pw"},
    {"conv": "standard"},
    {"conv": "dw_pw", "upsample": "nearest"},
    {"upsample": "nearest", "norm": "none"},
    {"upsample": "deconv"},
    {"conv": "dw_pw", "upsample": "deconv"},
    {"classes": 1, "deep_supervision": False},
    {"level": 1},
]


def trained(network: type[UNetPlusPlus] | type[UNet] = UNetPlusPlus, **switches: Any) -> UNetPlusPlus | UNet:
    """Return a network with random weights and norms that are not the identity."""
    torch.manual_seed(0)
    model = network(GridConfig(**{"filters": (6, 8, 10), "classes": 3, **switches})).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model


def made(model: UNetPlusPlus | UNet, dtype: torch.dtype = torch.float32) -> Deployed:
    values = (7, 3, 9)[: max(2, model.config.classes)]
    return deploy(model, mean=MEAN, std=STD, values=values, dtype=dtype)


def pixels(height: int = 24, width: int = 36, n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def defined(model: UNetPlusPlus | UNet, image: Tensor) -> Tensor:
    """Return the trained network's logits in float64."""
    x = (image.double() - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    with torch.no_grad():
        found: Tensor = model.double()(x.permute(0, 3, 1, 2))
    return found


@pytest.mark.parametrize(
    ("network", "switches"),
    [(UNetPlusPlus, s) for s in SWITCHES] + [(UNet, s) for s in SWITCHES if "level" not in s],
    ids=str,
)
def test_logits_are_the_trained_networks(network: type[UNetPlusPlus] | type[UNet], switches: dict[str, Any]) -> None:
    model = trained(network, **switches)
    deployed = made(model)
    image = pixels()
    truth = defined(model, image)
    found = deployed.logits(image)
    assert found.dtype == torch.float32 and found.shape == truth.shape
    assert float((found - truth).abs().max()) <= 1e-5 * float(truth.abs().max())


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw", "standard"])
def test_bytes_follow_from_the_logits(conv: str, classes: int) -> None:
    model = trained(conv=conv, classes=classes)
    deployed = made(model)
    image = pixels()
    logits = defined(model, image)
    if classes == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    sure = logits.topk(2, 1).values.diff(dim=1).abs()[:, 0] > 1e-4
    values = torch.tensor((7, 3, 9)[: max(2, classes)], dtype=torch.uint8)
    labels = deployed(image)
    assert labels.dtype == torch.uint8 and labels.shape == image.shape[:3]
    assert torch.equal(labels[sure], values[logits.argmax(1)][sure])
    probabilities = deployed.probabilities(image)
    assert float((probabilities.double() - logits.softmax(1) * 255).abs().max()) <= 0.501


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
def test_half_precision_is_near(conv: str, dtype: torch.dtype) -> None:
    model = trained(conv=conv)
    deployed = made(model, dtype)
    truth = defined(model, pixels())
    error = (deployed.logits(pixels()).double() - truth).norm() / truth.norm()
    assert float(error) <= 8 * torch.finfo(dtype).eps


def test_sixteen_bit_samples_are_normalised_before_they_are_rounded() -> None:
    """In bf16 10 050 and 10 000 are one number; the network must still tell them apart."""
    model = trained()
    deployed = deploy(model, mean=(10_000.0,) * 3, std=(20.0,) * 3, values=(0, 1, 2), dtype=torch.bfloat16)
    low, high = torch.full((1, 8, 8, 3), 10_000, dtype=torch.int32), torch.full((1, 8, 8, 3), 10_050, dtype=torch.int32)
    assert float((deployed.logits(low) - deployed.logits(high)).abs().max()) > 0.1


def test_other_shapes_are_refused() -> None:
    deployed = made(trained())
    for shape in ((1, 24, 30, 3), (1, 24, 36, 4), (0, 24, 36, 3)):
        with pytest.raises(ShapeError, match="multiples of 4"):
            deployed.labels(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw"])
def test_whole_network_compiles_and_exports_with_open_sizes(conv: str) -> None:
    """One graph, no breaks; the exported program runs at a size it was not traced at."""
    deployed = made(trained(conv=conv))
    compiled = torch.compile(deployed, fullgraph=True, dynamic=True, backend="aot_eager")
    for image in (pixels(), pixels(16, 20, 1)):
        assert torch.equal(compiled(image), deployed(image))
    batch, rows, columns = torch.export.Dim("n", max=8), torch.export.Dim("h", max=99), torch.export.Dim("w", max=99)
    program = torch.export.export(
        deployed, (pixels(),), dynamic_shapes={"pixels": {0: batch, 1: 4 * rows, 2: 4 * columns}}
    )
    other = pixels(40, 12, 3)
    assert torch.equal(program.module()(other), deployed(other))
