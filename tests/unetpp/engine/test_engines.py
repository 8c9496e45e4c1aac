"""Each engine against the definition: logits, decisions, sample types, determinism, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.engines import BF16_ENGINES, ENGINES, LEFT_OUT, NATIVE, UNSUPPORTED, kinds
from unetpp.engine import choose_engine
from unetpp.engine.native import NativeEngine
from unetpp.errors import BandsError, ShapeError
from unetpp.maps import STEPS
from unetpp.model.margins import Margins
from unetpp.model.orientations import Tta
from unetpp.native import target
from unetpp.native.support import WHOLE
from unetpp.package import Package, save_package
from unetpp.processor import cpu_flags

native_only = pytest.mark.skipif(not NATIVE, reason="no machine code for this CPU")


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Package]) -> Package:
    return make_package()


@pytest.fixture(scope="module")
def wide(make_package: Callable[..., Package]) -> Package:
    """Channels for which AMX is used, some of them behind the last only to fill its registers."""
    return make_package(filters=(20, 33, 17), classes=5)


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


@pytest.mark.parametrize(
    ("engine", "config"),
    [
        *((engine, {}) for engine in ENGINES),
        *((engine, config) for engine in ("torch", "openvino") for config in UNSUPPORTED),
        *((engine, {"network": "unet", "upsample": "nearest"}) for engine in NATIVE),
        *((engine, {"filters": (20, 33, 17), "bands": 4, "norm": "none"}) for engine in NATIVE),
    ],
    ids=str,
)
def test_logits_are_the_definitions(make_package: Callable[..., Package], engine: str, config: dict[str, Any]) -> None:
    package = make_package(**config)
    runner = choose_engine(package, name=engine, precision="fp32")
    for height, width in ((1, 1), (33, 70)):
        image = picture(height, width, len(package.spec.bands))
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
    for margins in ((28, 28, 28, 28), (28, 0, 28, 28), *([(27, 27, 27, 27)] if runner.any_margins else [])):
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


@pytest.mark.parametrize("engine", NATIVE)
def test_margins_that_leave_nothing_are_refused(package: Package, engine: str) -> None:
    runner = choose_engine(package, name=engine, precision="fp32")
    for margins in ((16, 0, 16, 0), (0, 20, 0, 12), (-4, 0, 0, 0)):
        with pytest.raises(ShapeError, match="leave nothing"):
            runner.labels(picture(32, 32), margins)
    assert runner.labels(picture(32, 32), (16, 31, 15, 0)).shape == (1, 1)


def native(package: Package, kind: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> NativeEngine:
    """Return the engine that a CPU gets for which this kind of machine code is best."""
    precision, better = LEFT_OUT[kind]
    flags = cpu_flags() - {better}
    with monkeypatch.context() as patch:
        patch.setattr(target, "cpu_flags", lambda: flags)
        engine = choose_engine(package, name="native", precision=precision, **options)
    assert isinstance(engine, NativeEngine)
    return engine


def inside(whole: NDArray[Any], margins: Margins) -> NDArray[Any]:
    top, left, bottom, right = margins
    return whole[..., top : whole.shape[-2] - bottom, left : whole.shape[-1] - right]


@pytest.mark.parametrize(
    ("kind", "upsample"),
    [
        *((kind, "nearest") for kind in kinds() if LEFT_OUT[kind][0] not in WHOLE),
        *((kind, "bilinear") for kind in kinds() if LEFT_OUT[kind][0] == "fp32"),
    ],
)
def test_every_kind_of_machine_code_is_exact_with_integers(
    make_package: Callable[..., Package], kind: str, upsample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of a sum's weights are 1 or -1, the others 0: integers of maps stay below 256, which bf16 holds exactly."""
    package = make_package(integer=True, norm="none", upsample=upsample, filters=(20, 33, 17), classes=5)
    model, dice = package.load_model(), np.random.default_rng(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                values: NDArray[Any] = dice.integers(0, 2, parameter.shape)
            elif "depthwise" in name:
                values = np.eye(9)[dice.integers(0, 9, len(parameter))]
            else:
                share = 2 / parameter[0].numel()
                values = dice.choice([-1, 0, 1], parameter.shape, p=[0.3 * share, 1 - share, 0.7 * share])
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    folder = package.folder.with_name(f"{package.folder.name}sparse")
    sparse = save_package(folder, model, package.spec, "")
    runner = native(sparse, kind, monkeypatch)
    for height, width in ((60, 75), (22, 1000), (150, 26)):  # wider and higher than what is computed at once
        image = picture(height, width) // 64
        expected = every_head(sparse, image)[-1]
        assert len(np.unique(expected)) > 50
        np.testing.assert_array_equal(runner.logits(image), expected)


@native_only
def test_fp32_does_not_depend_on_the_lanes(wide: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(61, 75)
    first, *others = (native(wide, kind, monkeypatch).logits(image) for kind in kinds() if LEFT_OUT[kind][0] == "fp32")
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("kind", kinds())
def test_threads_share_a_tile_without_a_trace(wide: Package, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (native(wide, kind, monkeypatch, threads=threads) for threads in (1, 2, 3))
    for image in (picture(64, 96), picture(33, 70), picture(64, 1), picture(40, 2), picture(9, 5), picture(1, 200)):
        logits, labels, layers = one.logits(image), one.labels(image), one.layers(image, ["uncertainty"])
        for engine in (two, three):
            assert engine.threads > 1
            np.testing.assert_array_equal(engine.logits(image), logits)
            np.testing.assert_array_equal(engine.labels(image), labels)
            np.testing.assert_array_equal(engine.layers(image, ["uncertainty"]), layers)
            assert engine.labels(image).flags.c_contiguous
    image = picture(64, 96)
    assert len(np.unique(one.labels(image))) > 1
    for margins in ((7, 5, 1, 2), (28, 93, 28, 2), (28, 90, 28, 5), (0, 1, 0, 0)):
        for engine in (two, three):
            np.testing.assert_array_equal(engine.logits(image, margins), one.logits(image, margins))


@pytest.mark.parametrize("kind", kinds())
def test_any_margins_are_left_out(wide: Package, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte: where a pixel lies among those that are computed is nothing to it."""
    runner, image = native(wide, kind, monkeypatch), picture(100, 128)
    whole, labels = runner.logits(image), runner.labels(image)
    maps = runner.layers(image, ["probabilities", "uncertainty"])
    for margins in (
        (1, 0, 0, 0),
        (0, 0, 0, 1),
        (3, 5, 7, 9),
        (28, 28, 28, 28),
        (0, 127, 0, 0),
        (0, 0, 99, 0),
        (50, 63, 49, 64),
    ):
        np.testing.assert_array_equal(runner.logits(image, margins), inside(whole, margins))
        np.testing.assert_array_equal(runner.labels(image, margins), inside(labels, margins))
        found = runner.layers(image, ["probabilities", "uncertainty"], margins)
        np.testing.assert_array_equal(found, inside(maps, margins))


@native_only
def test_margins_of_a_tile_that_must_be_padded_are_refused(package: Package) -> None:
    runner = choose_engine(package, name="native", precision="fp32")
    with pytest.raises(ShapeError, match="tile 31 x 32 with margins: its sides must be multiples of 4"):
        runner.labels(picture(31, 32), (1, 1, 1, 1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", kinds())
def test_calls_at_the_same_time_do_not_meet(
    wide: Package, kind: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((96, 128), (96, 128), (96, 128), (33, 70), (120, 120))  # calls of one shape might meet in its memory
    images = [picture(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    apart = [native(wide, kind, monkeypatch).logits(image) for image in images]
    # Norms of random weights do not say how far values reach: whole numbers have a definition of their own elsewhere.
    limit = {"fp32": 1e-5, "bf16": 0.05, "int16": 1, "int8": 1}[LEFT_OUT[kind][0]]
    for image, found in zip(images, apart, strict=True):
        expected = definition(wide, image)
        assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
    shared = native(wide, kind, monkeypatch, threads=threads)

    def run(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, len(images), 24):
            np.testing.assert_array_equal(shared.logits(images[number]), apart[number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    shared.release()
    np.testing.assert_array_equal(shared.logits(images[0]), apart[0])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_computes_the_definition(package: Package, precision: str) -> None:
    image = picture(129, 200)
    engine = choose_engine(package, precision=precision)
    assert (engine.name, engine.device) == ("torch", "cuda")
    expected = definition(package, image)
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert np.abs(engine.logits(image) - expected).max() <= tolerance * np.abs(expected).max()
