"""Each engine against the definition: logits, decisions, sample types, determinism, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import unetpp.engine
import unetpp.engine.openvino
from unetpp.engine import choose_engine, engine_reasons
from unetpp.errors import BandsError, EngineError, ShapeError
from unetpp.maps import STEPS
from unetpp.model.orientations import Tta
from unetpp.package import Package
from unetpp.processor import cpu_has_bf16

ENGINES = ("torch", "openvino")
BF16_ENGINES = ENGINES if cpu_has_bf16() else ("torch",)


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Package]) -> Package:
    return make_package()


def picture(height: int, width: int, bands: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)


def every_head(package: Package, image: NDArray[Any]) -> NDArray[np.float64]:
    """Return the unfolded network's logits (L, K, H, W) in float64, deepest head last."""
    pixels = (image.astype(np.float64) - package.spec.mean) / package.spec.std
    with torch.no_grad():
        heads = package.load_model().double().heads(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    result: NDArray[np.float64] = torch.cat(heads).numpy()
    return result


def definition(package: Package, image: NDArray[Any]) -> NDArray[np.float64]:
    """Return the unfolded network's logits in float64."""
    result: NDArray[np.float64] = every_head(package, image)[-1]
    return result


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", [{}, {"conv": "dw_pw"}, {"network": "unet", "upsample": "deconv"}], ids=str)
def test_logits_are_the_definitions(make_package: Callable[..., Package], engine: str, config: dict[str, Any]) -> None:
    package = make_package(**config)
    runner = choose_engine(package, name=engine, precision="fp32")
    for height, width in ((1, 1), (33, 70)):
        image = picture(height, width)
        expected = definition(package, image)
        logits = runner.logits(image)
        assert logits.dtype == np.float32 and logits.shape == (3, height, width)
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("engine", "precision"), [(e, "fp32") for e in ENGINES] + [(e, "bf16") for e in BF16_ENGINES])
@pytest.mark.parametrize("classes", [1, 2, 6])
def test_labels_are_the_class_values_of_the_largest_logit(
    make_package: Callable[..., Package], engine: str, precision: str, classes: int
) -> None:
    package = make_package(classes=classes, spec={"name": f"k{classes}"})
    runner = choose_engine(package, name=engine, precision=precision)
    image = picture(61, 53)
    logits, labels = runner.logits(image), runner.labels(image)
    assert labels.dtype == np.uint8 and labels.shape == (61, 53)
    ranks = (logits[0] > 0).astype(int) if classes == 1 else logits.argmax(0)
    values = np.array([c.value for c in package.spec.classes], np.uint8)
    assert len(np.unique(labels)) >= min(classes, 2)
    np.testing.assert_array_equal(labels, values[ranks])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("classes", [1, 3])
def test_equal_logits_give_the_first_class(make_package: Callable[..., Package], engine: str, classes: int) -> None:
    package = make_package(classes=classes, integer=True, norm="none")
    model = package.load_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    from unetpp.package import save_package

    constant = save_package(package.folder.with_name(f"{package.folder.name}zero"), model, package.spec, "")
    labels = choose_engine(constant, name=engine, precision="fp32").labels(picture(9, 9))
    assert (labels == constant.spec.classes[0].value).all()


def seen_from_all_sides(package: Package, image: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean probabilities (L, K, H, W) of the definition's heads over eight orientations, in float64.

    The image is padded first, as the network would pad the upright one.
    """
    height, width = image.shape[:2]
    multiple = package.spec.architecture.multiple
    padded = np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    total: Any = 0
    for quarter in range(4):
        for mirrored in (False, True):
            turned = np.rot90(padded, quarter)
            logits = every_head(package, np.fliplr(turned) if mirrored else turned)
            logits = logits[..., ::-1] if mirrored else logits
            logits = np.rot90(logits, -quarter, (2, 3))
            logits = np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
            shares = np.exp(logits - logits.max(1, keepdims=True))
            total = total + shares / shares.sum(1, keepdims=True)
    mean: NDArray[np.float64] = total[..., :height, :width] / 8
    return mean


def disagreement(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (H, W) of heads (L, K, H, W): the root of their Jensen-Shannon divergence as a share of the largest."""

    def entropy(p: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = -(p * np.log(p)).sum(axis)
        return found

    divergence = entropy(shares.mean(0), 0) - entropy(shares, 1).mean(0)
    return np.sqrt(divergence.clip(0) / np.log(min(shares.shape[:2])))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("classes", [1, 3])
def test_tta_is_the_mean_of_the_definitions_probabilities(
    make_package: Callable[..., Package], engine: str, classes: int
) -> None:
    package, image = make_package(classes=classes, spec={"name": f"t{classes}"}), picture(33, 70)
    runner = choose_engine(package, name=engine, precision="fp32", tta="d4")
    assert runner.tta == "d4"
    heads = seen_from_all_sides(package, image)
    expected = heads[-1]
    logits = runner.logits(image)
    assert logits.shape == (classes, 33, 70)
    found = np.concatenate([np.zeros_like(logits), logits]) if classes == 1 else logits
    shares = np.exp(found - found.max(0))
    np.testing.assert_allclose(shares / shares.sum(0), expected, atol=2e-5)
    values = np.array([info.value for info in package.spec.classes], np.uint8)
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    np.testing.assert_array_equal(runner.labels(image)[clear], values[expected.argmax(0)][clear])
    planes = runner.layers(image, ["probabilities", "uncertainty"])
    assert np.abs(planes[1:-1] - STEPS * expected).max() < 0.51
    assert np.abs(planes[-1] - STEPS * disagreement(heads)).max() < 1 and np.ptp(planes[-1]) > 5
    plain = choose_engine(package, name=engine, precision="fp32").layers(image, ["probabilities"])
    assert np.abs(plain[1:].astype(int) - planes[1:-1]).max() > 5, "the network does not care"


@pytest.mark.parametrize("engine", ENGINES)
def test_tta_without_margins_is_the_middle_of_the_whole(package: Package, engine: str) -> None:
    image = picture(96, 80)
    runner = choose_engine(package, name=engine, precision="fp32", tta="d4")
    whole, maps = runner.logits(image), runner.layers(image, ["probabilities", "uncertainty"])
    for margins in ((28, 28, 28, 28), (28, 0, 28, 28)):
        top, left, bottom, right = margins
        inner = (slice(None), slice(top, 96 - bottom), slice(left, 80 - right))
        np.testing.assert_allclose(runner.logits(image, margins), whole[inner], atol=1e-5)
        found = runner.layers(image, ["probabilities", "uncertainty"], margins)
        assert np.abs(found.astype(int) - maps[inner])[1:].max() <= 1 and (found[0] == maps[0][inner[1:]]).mean() > 0.99


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_arrays_may_be_views_and_results_are_none(package: Package, engine: str, tta: Tta) -> None:
    runner, image = choose_engine(package, name=engine, precision="fp32", tta=tta), picture(48, 64)
    np.testing.assert_array_equal(runner.labels(image[::-1, ::-1]), runner.labels(image[::-1, ::-1].copy()))
    assert runner.labels(image[:47, :61]).flags.c_contiguous and runner.logits(image[:47, :61]).flags.c_contiguous


@pytest.mark.parametrize("engine", BF16_ENGINES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_bf16_does_not_round_raw_values(make_package: Callable[..., Package], engine: str, dtype: str) -> None:
    """10,000 and 10,020 are one number in bf16: normalising must come first."""
    package = make_package(spec={"dtype": dtype, "mean": (10_000.0,) * 3, "std": (20.0,) * 3})
    image = (10_000 + np.random.default_rng(0).integers(-40, 40, (41, 47, 3))).astype(dtype)
    expected = definition(package, image)
    logits = choose_engine(package, name=engine, precision="bf16").logits(image)
    assert np.sqrt(np.mean((logits - expected) ** 2)) <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("engine", BF16_ENGINES)
def test_precision_is_what_was_asked(package: Package, engine: str) -> None:
    image = picture(64, 64)
    expected = definition(package, image)
    errors = {
        precision: np.abs(choose_engine(package, name=engine, precision=precision).logits(image) - expected).max()
        for precision in ("fp32", "bf16")
    }
    assert errors["fp32"] < 1e-4 * np.abs(expected).max() < errors["bf16"]


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_tiles_are_refused(package: Package, engine: str) -> None:
    runner = choose_engine(package, name=engine, precision="fp32")
    with pytest.raises(ShapeError, match=r"expected \(H, W, 3\)"):
        runner.labels(np.zeros((4, 4), np.uint8))
    with pytest.raises(ShapeError, match="H, W >= 1"):
        runner.labels(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(BandsError, match="4 bands of uint8, model 'small' reads 3 of uint8"):
        runner.labels(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(BandsError, match="3 bands of uint16"):
        runner.labels(np.zeros((4, 4, 3), np.uint16))


def test_what_is_unknown_or_missing_is_named(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="engine 'tensorrt' is unknown; choose auto, triton, openvino, torch"):
        choose_engine(package, name="tensorrt")
    with pytest.raises(EngineError, match="precision 'int8' is unknown"):
        choose_engine(package, precision="int8")
    with pytest.raises(EngineError, match="at least one thread"):
        choose_engine(package, threads=0)
    with pytest.raises(EngineError, match="tta 'eight' is unknown; choose none, mirror, flips, d4"):
        choose_engine(package, tta="eight")  # type: ignore[arg-type]
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    monkeypatch.setattr(unetpp.engine, "cpu_has_bf16", lambda: False)
    with pytest.raises(EngineError, match="does not multiply bf16"):
        choose_engine(package, name="openvino", precision="bf16")
    assert choose_engine(package, name="openvino").precision == "fp32"
    monkeypatch.setattr(unetpp.engine.openvino, "openvino_version", lambda: None)
    with pytest.raises(EngineError, match="OpenVINO is not installed"):
        choose_engine(package, name="openvino")
    assert ("openvino", False, "not installed") in engine_reasons()
    assert choose_engine(package).name == "torch"


def test_auto_is_openvino_in_the_cpus_best_precision(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    engine = choose_engine(package, threads=2, tile_shape=(32, 48))
    assert (engine.name, engine.device, engine.threads) == ("openvino", "cpu", 2)
    assert engine.precision == ("bf16" if cpu_has_bf16() else "fp32")
    assert engine.version and all(part.isdigit() for part in engine.version.split(".")[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_computes_the_definition(package: Package, precision: str) -> None:
    image = picture(129, 200)
    engine = choose_engine(package, precision=precision)
    assert (engine.name, engine.device) == ("torch", "cuda")
    expected = definition(package, image)
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert np.abs(engine.logits(image) - expected).max() <= tolerance * np.abs(expected).max()
