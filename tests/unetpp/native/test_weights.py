"""Weights are read, folded and ordered without torch; here torch says what they should be."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unetpp.native.machine import lively
from unetpp.errors import ModelPackageError
from unetpp.model import UNet, UNetPlusPlus
from unetpp.model.fold import fold
from unetpp.native.rows import Sources, on_tiles, vectors_at_once
from unetpp.native.target import Target
from unetpp.native.weights import (
    expected_shapes,
    folded_weights,
    pack_depthwise,
    pack_pointwise,
    to_bf16,
)
from unetpp.package import WEIGHTS, Package, load_package

MakePackage = Callable[..., Package]
TILES = Target(16, "bf16", tiles=True)


@pytest.fixture
def own(make_package: MakePackage) -> Package:
    """Return a package that a test may damage."""
    return lively(make_package())


def rewritten(package: Package, change: Callable[[dict[str, torch.Tensor]], None]) -> Package:
    weights = load_file(package.folder / WEIGHTS)
    change(weights)
    save_file(weights, package.folder / WEIGHTS)
    return load_package(package.folder)


def one_line(package: Package) -> str:
    with pytest.raises(ModelPackageError) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        folded_weights(package)
    message = str(caught.value)
    assert "\n" not in message and str(package.folder) in message
    return message


@pytest.mark.parametrize(
    "config",
    [{}, {"norm": "none"}, {"network": "unet"}, {"filters": (4, 8, 8, 12), "level": 2}, {"deep_supervision": False}],
    ids=str,
)
def test_folding_is_the_models(make_package: MakePackage, config: dict[str, Any]) -> None:
    package = lively(make_package(**config))
    model = package.load_model()
    expected = fold(model).state_dict() if config.get("norm") != "none" else model.state_dict()
    found = folded_weights(package)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_read_as_the_model_reads_them(own: Package, kind: torch.dtype) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name, value in weights.items():
            if value.is_floating_point():
                weights[name] = value.to(kind)

    package = rewritten(own, change)
    expected = fold(package.load_model()).state_dict()
    for name, value in folded_weights(package).items():
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-6, atol=1e-7, err_msg=name)


def _architectures() -> Iterator[tuple[dict[str, Any], type[UNetPlusPlus | UNet]]]:
    for norm in ("batch", "none"):
        yield {"norm": norm, "network": "unet", "bands": 5}, UNet
        for deep in (True, False):
            yield {"norm": norm, "deep_supervision": deep, "filters": (3, 5, 7, 9), "classes": 1}, UNetPlusPlus
        yield {"norm": norm, "filters": (3, 5, 7, 9), "level": 2}, UNetPlusPlus


@pytest.mark.parametrize(("config", "kind"), list(_architectures()), ids=str)
def test_shapes_are_the_models(
    make_package: MakePackage, config: dict[str, Any], kind: type[UNetPlusPlus | UNet]
) -> None:
    spec = make_package(**config).spec
    state = kind(spec.architecture).state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items() if "num_batches" not in name}
    assert expected_shapes(spec) == expected


def test_damaged_files(own: Package) -> None:
    path = own.folder / WEIGHTS
    content = path.read_bytes()
    for damaged in (b"", content[:5], content[:100], content[:-1], content + b"x", b"\xff" * 64):
        path.write_bytes(damaged)
        assert "cannot be read" in one_line(load_package(own.folder))
    path.unlink()
    assert "cannot be read" in one_line(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("nodes.1_1.second.pointwise"), ("nodes.1_1.second.pointwise", "missing")),
        (lambda w: w.pop("nodes.0_0.first.norm.running_var"), ("nodes.0_0.first.norm.running_var", "missing")),
        (lambda w: w.update(more=torch.ones(1)), ("more", "none of the network's")),
        (lambda w: w.update({"head_convs.2.bias": torch.ones(4)}), ("head_convs.2.bias", "(4,)", "(3,)")),
        (lambda w: w.update({"head_convs.2.bias": torch.ones(3, 1)}), ("head_convs.2.bias", "(3, 1)")),
        (lambda w: w["head_convs.1.weight"].fill_(torch.nan), ("head_convs.1.weight", "not finite")),
        (lambda w: w["nodes.0_0.first.norm.running_var"].fill_(torch.inf), ("running_var", "not finite")),
        (lambda w: w["nodes.0_0.first.norm.running_var"].fill_(-1), ("nodes.0_0.first.standard", "not finite")),
        (lambda w: w.update({"head_convs.2.bias": torch.full((3,), 1e300, dtype=torch.float64)}), ("not finite",)),
        (lambda w: w.update({"head_convs.2.bias": torch.ones(3).to(torch.uint8)}), ("head_convs.2.bias", "U8", "F32")),
        (lambda w: w.update({"head_convs.2.bias": torch.ones(3, dtype=torch.bool)}), ("BOOL",)),
        (lambda w: w.update({"head_convs.2.bias": torch.ones(3).to(torch.float8_e4m3fn)}), ("F8_E4M3",)),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(
    own: Package, change: Callable[[dict[str, torch.Tensor]], None], words: tuple[str, ...]
) -> None:
    message = one_line(rewritten(own, change))
    assert all(word in message for word in words), message


def test_what_training_counted_does_not_matter(own: Package) -> None:
    """Whether it is there, and of whatever type."""
    before = folded_weights(own)

    def change(weights: dict[str, torch.Tensor]) -> None:
        counts = [name for name in weights if name.endswith("num_batches_tracked")]
        del weights[counts[0]]
        weights[counts[1]] = torch.tensor(3, dtype=torch.int32)

    after = folded_weights(rewritten(own, change))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_package_that_changed_is_refused(own: Package, make_package: MakePackage) -> None:
    other = lively(make_package(), lambda model: next(model.parameters()).mul_(2))
    (own.folder / WEIGHTS).write_bytes((other.folder / WEIGHTS).read_bytes())
    changed = dataclasses.replace(own, digest="0" * 64)
    assert "changed since it was opened" in one_line(changed)
    folded_weights(load_package(own.folder))


def test_rounding_to_bf16() -> None:
    """As torch rounds: to the nearest, of two to the even one."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    values[:6] = 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x00000001, 0x7F7FFFFF
    floats = values.view(np.float32)
    floats = floats[~np.isnan(floats)]
    expected = torch.from_numpy(floats).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bf16(floats), expected)


@pytest.mark.parametrize(
    "target", [Target(8), Target(16), Target(16, "bf16"), Target(8, "int16"), Target(16, "int8"), TILES], ids=str
)
@pytest.mark.parametrize(("outputs", "channels", "count"), [(5, 3, 2), (40, 20, 3), (64, 33, 1)])
def test_order_of_pointwise_weights(target: Target, outputs: int, channels: int, count: int) -> None:
    """Every weight is where the innermost loop of `unetpp.native.rows` looks for it, and the rest is zeros."""
    made, wide = target.padded(outputs), target.padded(channels)
    sources = Sources(wide, wide * target.size)
    weights = np.arange(1, outputs * count * channels + 1, dtype=np.float32).reshape(outputs, -1) % 127 + 1
    packed = pack_pointwise(weights, target, made, sources, channels)
    assert packed.ctypes.data % 64 == 0
    found = (packed.astype(np.uint32) << 16).view(np.float32) if target.stored == "bf16" else packed
    assert found.itemsize == 4 or packed.dtype == {"int16": np.int16, "int8": np.int8}[target.stored]
    assert found.size == made * wide * count and np.count_nonzero(found) == weights.size
    tiles = on_tiles(target, sources, made)
    block = 32 if tiles else vectors_at_once(target, made) * target.lanes
    together = target.together
    for o in range(0, outputs, 3):
        for source in range(count):
            for c in range(channels):
                step = ((o // block) * count + source) * (wide // together) + c // together
                place = (step * block + o % block) * together + c % together
                assert found[place] == weights[o, source * channels + c]


def test_order_of_depthwise_weights() -> None:
    weights = np.arange(1, 46, dtype=np.float32).reshape(5, 1, 3, 3)
    packed = pack_depthwise(weights, 16)
    assert packed.shape == (9, 16) and packed.ctypes.data % 64 == 0 and not packed[:, 5:].any()
    assert packed[4, 2] == weights[2, 0, 1, 1] and packed[5, 2] == weights[2, 0, 1, 2]
