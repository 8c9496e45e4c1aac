"""The network's facts: published sizes, the node set, pruning, any input size, folding, and how far it sees."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from unetpp.errors import ArchitectureError, ShapeError
from unetpp.model import GridConfig, UNet, UNetPlusPlus
from unetpp.model.fold import fold

SMALL = (4, 6, 8, 10)
SWITCHES = list(itertools.product(("pw_dw", "dw_pw", "standard"), ("bilinear", "nearest", "deconv")))


def small(**changes: object) -> GridConfig:
    return dataclasses.replace(GridConfig(filters=SMALL), **changes)  # type: ignore[arg-type]


def trained(model: UNetPlusPlus | UNet, seed: int = 0) -> UNetPlusPlus | UNet:
    """Give every BatchNorm statistics and scales of its own, as training would."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=g) * (high - low) + low)
    return model.eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_of_the_paper() -> None:
    """Table 3 of the DLMIA 2018 paper (9.04 M and 7.76 M), to the last parameter."""
    assert parameters(UNetPlusPlus.paper()) == 9_041_601
    assert parameters(UNet.paper()) == 7_759_521


def test_default_network_has_the_promised_size() -> None:
    assert 1_050_000 < parameters(UNetPlusPlus(GridConfig(classes=2))) < 1_060_000


@pytest.mark.parametrize("level", [1, 2, 3])
def test_node_set_is_the_triangle(level: int) -> None:
    nodes = set(UNetPlusPlus(small(level=level)).nodes)
    assert nodes == {f"{i}_{j}" for i in range(level + 1) for j in range(level + 1 - i)}


@pytest.mark.parametrize("conv,upsample", SWITCHES)
def test_pruned_output_is_the_head_bit_for_bit(conv: str, upsample: str) -> None:
    torch.manual_seed(1)
    model = trained(UNetPlusPlus(small(conv=conv, upsample=upsample)))
    assert isinstance(model, UNetPlusPlus)
    x = torch.randn(1, 3, 37, 29)
    with torch.no_grad():
        heads = model.heads(x)
        assert torch.equal(model(x), heads[-1])
        for level in (1, 2, 3):
            pruned = model.prune(level)
            assert pruned.multiple == model.multiple == 8
            assert torch.equal(pruned(x), heads[level - 1])
            assert parameters(pruned) < parameters(model) or level == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (8, 8), (31, 17)])
@pytest.mark.parametrize("network", [UNetPlusPlus, UNet])
def test_any_size_equals_the_padded_image_cropped(network: type[UNetPlusPlus | UNet], size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    model = trained(network(small()))
    height, width = size
    x = torch.randn(1, 3, height, width)
    rows = torch.arange(-(-height // 8) * 8).clamp(max=height - 1)
    columns = torch.arange(-(-width // 8) * 8).clamp(max=width - 1)
    padded = x[:, :, rows][:, :, :, columns]
    with torch.no_grad():
        assert torch.equal(model(x), model(padded)[..., :height, :width])
        assert model(x).shape == (1, 2, height, width)


@pytest.mark.parametrize("network", [UNetPlusPlus, UNet])
@pytest.mark.parametrize("conv,upsample", SWITCHES)
def test_folding_keeps_the_function(network: type[UNetPlusPlus | UNet], conv: str, upsample: str) -> None:
    torch.manual_seed(3)
    model = trained(network(small(conv=conv, upsample=upsample))).double()
    folded = fold(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(1, 3, 40, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw", "standard"])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "deconv"])
def test_receptive_radius_is_what_gradients_reach(conv: str, upsample: str) -> None:
    """Every weight 1 and no cancelling: the input gradient of one output pixel is non-zero exactly where it sees."""
    model = UNetPlusPlus(small(conv=conv, upsample=upsample, norm="none", filters=(2, 2, 2)))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    model = model.double().eval()
    side, reached = 96, 0
    for y in range(44, 48):
        x = torch.rand(1, 3, side, 4, dtype=torch.float64, requires_grad=True)
        # Max-pooling sends gradients to one of its two rows only, so two images cover both.
        gradient = torch.zeros(side)
        for order in (1.0, -1.0):
            ramp = torch.arange(side, dtype=torch.float64).view(1, 1, side, 1) * order + 200
            x = ramp.expand(1, 3, side, 4).clone().requires_grad_(True)
            (g,) = torch.autograd.grad(model(x)[0, 0, y].sum(), x)
            gradient += g.abs().sum(dim=(0, 1, 3)).float()
        rows = torch.nonzero(gradient).flatten()
        reached = max(reached, y - int(rows.min()), int(rows.max()) - y)
    assert reached == model.receptive_radius
    assert model.halo >= reached and model.halo % 4 == 0 and model.halo - reached < 4


def test_pruned_network_sees_less() -> None:
    radii = [UNetPlusPlus(small(level=level)).receptive_radius for level in (1, 2, 3)]
    assert radii == sorted(radii) and len(set(radii)) == 3


def test_channels_last_computes_the_same() -> None:
    torch.manual_seed(4)
    model = trained(UNetPlusPlus(small()))
    x = torch.randn(2, 3, 24, 16)
    with torch.no_grad():
        plain = model(x)
        packed = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))  # type: ignore[call-overload]
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_every_parameter_is_trained_by_the_heads() -> None:
    model = UNetPlusPlus(small(deep_supervision=True)).train()
    sum(head.square().mean() for head in model.heads(torch.randn(2, 3, 16, 16))).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"conv": "separable"}, "pw_dw, dw_pw, standard"),
        ({"norm": "instance"}, "batch, none"),
        ({"filters": (8,)}, "at least two"),
        ({"level": 4}, "heads 1..3"),
        ({"level": 1, "deep_supervision": False}, "only head 3"),
        ({"classes": 0}, "classes=0"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        small(**changes)


def test_pruning_without_deep_supervision_names_the_heads() -> None:
    with pytest.raises(ArchitectureError, match="heads 3"):
        UNetPlusPlus(small(deep_supervision=False)).prune(1)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_wrong_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(N, 3, H, W\)"):
        UNetPlusPlus(small())(torch.zeros(shape))


def test_model_imports_without_heavy_libraries() -> None:
    """The model must load on a GPU machine that has torch and numpy only."""
    import subprocess
    import sys

    code = (
        "import sys, unetpp.model; "
        "print([m for m in ('zarr','rasterio','openslide','scipy','pydantic','ray','mlflow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_u_net_has_no_levels() -> None:
    """Its halo would be that of the pruned grid: 16 px where the network sees 54."""
    assert UNet(small(level=3)).halo == UNet(small()).halo
    with pytest.raises(ArchitectureError, match="level=1: a U-Net has one head, at level 3; leave level out"):
        UNet(small(level=1))
