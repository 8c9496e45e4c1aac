"""Weights of the usual re-implementation, written here from its published structure, give the same function."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from unetpp.errors import ModelPackageError
from unetpp.foreign import from_reimplementation, read_state

FILTERS = (4, 6, 8)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class Nested(nn.Module):
    """The nested U-Net of depth 2 as it is usually written, one attribute per node."""

    def __init__(self, classes: int, deep: bool) -> None:
        super().__init__()
        a, b, c = FILTERS
        self.deep = deep
        self.conv0_0, self.conv1_0, self.conv2_0 = Block(3, a), Block(a, b), Block(b, c)
        self.conv0_1, self.conv1_1 = Block(a + b, a), Block(b + c, b)
        self.conv0_2 = Block(2 * a + b, a)
        if deep:
            self.final1, self.final2 = nn.Conv2d(a, classes, 1), nn.Conv2d(a, classes, 1)
        else:
            self.final = nn.Conv2d(a, classes, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        def up(y: Tensor) -> Tensor:
            return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)

        x0_0 = self.conv0_0(x)
        x1_0 = self.conv1_0(F.max_pool2d(x0_0, 2))
        x0_1 = self.conv0_1(torch.cat([x0_0, up(x1_0)], 1))
        x2_0 = self.conv2_0(F.max_pool2d(x1_0, 2))
        x1_1 = self.conv1_1(torch.cat([x1_0, up(x2_0)], 1))
        x0_2 = self.conv0_2(torch.cat([x0_0, x0_1, up(x1_1)], 1))
        return [self.final1(x0_1), self.final2(x0_2)] if self.deep else [self.final(x0_2)]


def trained(classes: int, deep: bool) -> Nested:
    torch.manual_seed(0)
    network = Nested(classes, deep)
    for _ in range(5):  # running statistics that are not the initial ones
        network(torch.randn(2, 3, 16, 16) * 3 + 1)
    for value in network.parameters():
        value.data += torch.randn_like(value) * 0.05
    return network.eval()


@pytest.mark.parametrize(("classes", "deep"), [(3, True), (1, False)])
def test_every_head_is_the_same_function(classes: int, deep: bool, tmp_path: Path) -> None:
    theirs = trained(classes, deep)
    path = tmp_path / "nested.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, path)
    ours = from_reimplementation(read_state(path))
    assert ours.config.filters == FILTERS and ours.config.classes == classes
    x = torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        for mine, wanted in zip(ours.heads(x), theirs(x), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    save_file(theirs.state_dict(), tmp_path / "nested.safetensors")
    again = from_reimplementation(read_state(tmp_path / "nested.safetensors"))
    assert all((a == b).all() for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv0_0.conv1.weight": Trap()}, tmp_path / "evil.pth")
    with pytest.raises(ModelPackageError, match=r"is no plain state dict: damaged, or .* run code") as caught:
        read_state(tmp_path / "evil.pth")
    assert "weights_only" not in str(caught.value)  # torch advises to switch its protection off
    assert not (tmp_path / "trapped").exists()


def test_other_networks_are_refused_by_name() -> None:
    state = trained(2, True).state_dict()
    with pytest.raises(ModelPackageError, match="not the usual re-implementation"):
        from_reimplementation({"encoder.conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelPackageError, match=r"'attention\.weight' is not of the usual"):
        from_reimplementation({**state, "attention.weight": torch.zeros(1)})
    with pytest.raises(ModelPackageError, match="do not make a UNet\\+\\+ grid"):
        from_reimplementation({**state, "conv0_2.conv1.weight": torch.zeros(4, 9, 3, 3)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv0_1.conv2.weight", torch.tensor(torch.nan)),
        ("conv1_0.conv1.bias", torch.tensor(-torch.inf)),
        ("conv0_0.bn2.running_var", torch.tensor(1e300, dtype=torch.float64)),  # too large for our float32
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(name: str, value: Tensor) -> None:
    state = trained(2, True).state_dict()
    spoilt = state[name].to(value.dtype)
    spoilt.view(-1)[1] = value
    with pytest.raises(ModelPackageError, match=rf"'{name}' is not finite"):
        from_reimplementation({**state, name: spoilt})
