"""The engine of fused kernels: on a CUDA device against the fp64 definition, and what it says without one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import unetpp.engine
from unetpp.engine import choose_engine, engine_reasons
from unetpp.engine.torch import TorchEngine
from unetpp.engine.triton import TritonEngine
from unetpp.errors import EngineError
from unetpp.model.deploy import deploy
from unetpp.model.orientations import Tta
from unetpp.package import Package


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def definition(package: Package, image: NDArray[Any]) -> NDArray[np.float64]:
    pixels = (image.astype(np.float64) - package.spec.mean) / package.spec.std
    with torch.no_grad():
        logits = package.load_model().double()(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    found: NDArray[np.float64] = logits[0].numpy()
    return found


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("conv", ["pw_dw", "dw_pw", "standard"])
def test_logits_and_labels_are_the_definitions(
    make_package: Callable[..., Package], conv: str, precision: str, limit: float
) -> None:
    package = make_package(conv=conv)
    engine = choose_engine(package, name="triton", precision=precision)
    for size in ((1, 1), (33, 70), (250, 130)):
        image = picture(*size)
        truth = definition(package, image)
        logits = engine.logits(image)
        assert logits.dtype == np.float32 and logits.shape == truth.shape
        assert np.linalg.norm(logits - truth) <= limit * np.linalg.norm(truth)
        margin = np.diff(np.sort(truth, axis=0)[-2:], axis=0)[0]
        values = np.array([info.value for info in package.spec.classes], np.uint8)
        sure = margin > 10 * limit * np.abs(truth).max()
        np.testing.assert_array_equal(engine.labels(image)[sure], values[truth.argmax(0)][sure])


@pytest.mark.gpu
def test_a_tile_gives_the_same_bytes_every_time_and_from_every_thread(make_package: Callable[..., Package]) -> None:
    engine = choose_engine(make_package(), name="triton")
    image, other = picture(96, 160), picture(64, 64, seed=1)
    first, second = engine.labels(image), engine.labels(other)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(engine.labels, [image, other] * 8))
    assert all(np.array_equal(found, first) for found in again[::2])
    assert all(np.array_equal(found, second) for found in again[1::2])


@pytest.mark.gpu
def test_it_is_the_default_on_a_gpu(make_package: Callable[..., Package]) -> None:
    engine = choose_engine(make_package())
    assert (engine.name, engine.precision, engine.device) == ("triton", "fp16", "cuda")


def test_without_a_gpu_it_says_so(make_package: Callable[..., Package], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="torch sees no CUDA device; use --engine openvino or torch"):
        choose_engine(make_package(), name="triton")
    with pytest.raises(EngineError, match="the torch engine has no fp16; use --precision bf16 or fp32"):
        choose_engine(make_package(), name="torch", precision="fp16")
    assert ("triton", False, "fused kernels: torch sees no CUDA device") in engine_reasons()


def test_kernels_that_fail_are_left_out_of_auto_and_named_otherwise(
    make_package: Callable[..., Package], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver or compiler that breaks them must not stop a run that plain torch can do."""

    def build(package: Package, name: str, device: str, precision: str, threads: int, tta: Tta) -> TorchEngine:
        if name == "triton":
            raise EngineError("the fused kernels differ from torch by 80%")
        return TorchEngine(package, precision="bf16" if precision == "bf16" else "fp32", threads=threads, tta=tta)

    monkeypatch.setattr(unetpp.engine, "_available", lambda *_: ("triton", "cuda"))
    monkeypatch.setattr(unetpp.engine, "_build", build)
    assert choose_engine(make_package()).name == "torch"
    assert "the triton engine is left out: the fused kernels differ from torch by 80%" in caplog.text
    for settings in ({"name": "triton"}, {"precision": "fp16"}):
        with pytest.raises(EngineError, match="differ from torch"):
            choose_engine(make_package(), **settings)  # type: ignore[arg-type]


def test_kernels_that_disagree_with_torch_are_refused(make_package: Callable[..., Package]) -> None:
    """The check that runs when an engine is made, here on the CPU's definitions: right, wrong and not finite."""
    package = make_package()
    engine = object.__new__(TritonEngine)
    engine.device, engine.spec, engine.precision = "cpu", package.spec, "fp32"  # type: ignore[misc]
    engine.multiple = package.spec.architecture.multiple
    spec = package.spec
    values = [info.value for info in spec.classes]
    engine._network = deploy(package.load_model(), mean=spec.mean, std=spec.std, values=values, dtype=torch.float32)
    engine._check_against_torch(package)
    engine._network.get_buffer("head").mul_(2)
    with pytest.raises(EngineError, match="differ from torch by"):
        engine._check_against_torch(package)
    engine._network.get_buffer("head").mul_(torch.inf)
    with pytest.raises(EngineError, match="overflows in fp32"):
        engine._check_against_torch(package)


def differ(found: NDArray[np.uint8], truth: NDArray[np.uint8], steps: int) -> None:
    """Check labels and maps (planes, H, W): labels equal but for ties, maps within some steps of 1/254."""
    assert found.shape == truth.shape and (found[0] == truth[0]).mean() > 0.99
    assert np.abs(found[1:].astype(int) - truth[1:]).max() <= steps and np.ptp(truth[-1]) > 10


def test_labels_and_maps_of_one_graph_on_the_cpus_definitions(make_package: Callable[..., Package]) -> None:
    package = make_package()
    engine = object.__new__(TritonEngine)
    engine.spec = spec = package.spec
    values = [info.value for info in spec.classes]
    engine._network = deploy(package.load_model(), mean=spec.mean, std=spec.std, values=values, dtype=torch.float32)
    image = picture(64, 96)
    for engine.tta in ("none", "d4"):
        plain = TorchEngine(package, tta=engine.tta)
        for maps in (("probabilities",), ("uncertainty",), ("probabilities", "uncertainty")):
            found = engine._function(maps)(torch.from_numpy(image)[None])  # type: ignore[arg-type]
            differ(found[0].numpy(), plain.layers(image, maps), 1)  # type: ignore[arg-type]
        pixels = torch.from_numpy(image)[None]
        np.testing.assert_allclose(engine._function("logits")(pixels)[0], plain.logits(image), atol=1e-4)
        assert (engine._function("labels")(pixels)[0].numpy() == plain.labels(image)).mean() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("tta", ["none", "d4"])
@pytest.mark.parametrize(("precision", "steps"), [("fp32", 1), ("fp16", 8)])
def test_labels_and_maps_on_the_device(
    make_package: Callable[..., Package], precision: str, steps: int, tta: Tta
) -> None:
    package, image = make_package(), picture(65, 97)
    engine = choose_engine(package, name="triton", precision=precision, tta=tta)
    found = engine.layers(image, ("probabilities", "uncertainty"))
    differ(found, TorchEngine(package, tta=tta).layers(image, ("probabilities", "uncertainty")), steps)
    assert np.array_equal(found, engine.layers(image, ("probabilities", "uncertainty")))
