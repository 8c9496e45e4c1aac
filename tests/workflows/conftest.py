"""Fixtures of the workflow tests: a network whose answer is known, and a home folder that is not the user's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from unetpp.geometry import Spacing

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

INK, PAPER, SMUDGE = 20, 220, 100


@pytest.fixture(scope="session")
def ink_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of 3 uint8 bands and the classes paper (0) and ink (1): a pixel is ink where its red is below 112.

    Only the path of red along the centre taps has weights, so every engine and precision finds the same labels.
    """
    import torch

    from unetpp.model import GridConfig, UNetPlusPlus
    from unetpp.package import ClassInfo, ModelSpec, save_package

    config = GridConfig(bands=3, classes=1, filters=(2, 2), norm="none", deep_supervision=False)
    model = UNetPlusPlus(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name.startswith("nodes.0_"):
                centre = weight.view(-1)[weight.shape[-1] ** 2 // 2 : weight.shape[-1] ** 2 // 2 + 1]
                centre.fill_(0.0 if name.endswith("bias") else -1.0 if name.endswith("0_0.first.standard") else 1.0)
            elif name.startswith("head_convs"):
                weight.view(-1)[0] = -0.25 if name.endswith("bias") else 1.0
    spec = ModelSpec(
        name="ink",
        architecture=config,
        classes=(
            ClassInfo(value=0, name="paper", color=(240, 240, 230), background=True),
            ClassInfo(value=1, name="ink", color=(200, 30, 60)),
        ),
        bands=("red", "green", "blue"),
        mean=(128.0, 128.0, 128.0),
        std=(64.0, 64.0, 64.0),
    )
    return save_package(tmp_path_factory.mktemp("packages") / "ink", model, spec, "# ink\n").folder


@pytest.fixture(scope="session")
def ink_package_with_spacing(ink_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, said to be trained at 0.5 um per pixel."""
    from unetpp.package import load_package, save_package

    package = load_package(ink_package)
    spec = replace(package.spec, name="ink-um", spacing=Spacing(0.5, 0.5, "um"))
    return save_package(tmp_path_factory.mktemp("packages") / "ink-um", package.load_model(), spec, "# ink\n").folder


@pytest.fixture(scope="session")
def ink_variant(ink_package: Path) -> Callable[..., Path]:
    """Write a package of the ink network with another threshold (0 to 127) on red and other facts of its training."""
    import torch

    from unetpp.package import load_package, save_package

    def write(folder: Path, threshold: int = 112, card: str = "# ink\n", **facts: Any) -> Path:
        package = load_package(ink_package)
        network = package.load_model()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if name.startswith("head_convs") and name.endswith("bias"):
                    weight.view(-1)[0] = -(128 - threshold) / 64
        return save_package(folder, network, replace(package.spec, **facts), card).folder

    return write


@pytest.fixture(scope="session")
def ink_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Prepare a store of square pictures: 100 px of ink, `smudges` px of smudge (true ink) per group of the test split.

    The network of `ink_package` finds ink and smudges, one with a threshold of 60 finds ink only. Groups a, b, ...
    have one image each; the training split has one image, of ink alone.
    """
    from PIL import Image

    from unetpp_workflows.config import validate
    from unetpp_workflows.prepare.build import discard_work, prepare
    from unetpp_workflows.prepare.dataset import Dataset

    made: dict[tuple[int, ...], Path] = {}

    def store(*smudges: int) -> Path:
        if smudges in made:
            return made[smudges]
        root = tmp_path_factory.mktemp("ink-store")
        (root / "images").mkdir()
        (root / "labels").mkdir()
        names = [chr(ord("a") + index) for index in range(len(smudges))]
        for index, (name, count) in enumerate(zip(["t", *names], (0, *smudges), strict=True)):
            pixels = np.full((48, 64, 3), PAPER - index, np.uint8)
            pixels[4:14, 4:14] = INK
            pixels.reshape(-1, 3)[30 * 64 : 30 * 64 + count] = SMUDGE
            Image.fromarray(pixels).save(root / "images" / f"{name}.png")
            Image.fromarray((pixels[..., 0] <= SMUDGE).astype(np.uint8)).save(root / "labels" / f"{name}.png")
        data = {"images": "images/*.png", "labels": "labels/{stem}.png", "side": 32, "validation": [], "test": names}
        classes = [
            {"name": "paper", "color": [240, 240, 230], "background": True},
            {"name": "ink", "color": [200, 30, 60]},
        ]
        found = prepare(
            validate(Dataset, {"name": "ink", "data": data, "classes": classes}, source="test"), root, root / "ink.zarr"
        )
        assert not found.errors, found.errors
        discard_work(found.store)
        made[smudges] = found.store
        return found.store

    return store


@pytest.fixture
def blots(tmp_path: Path) -> Callable[..., Path]:
    """Draw an RGB PNG of paper with two square blots of ink (10 x 10 and 20 x 30 px)."""
    from PIL import Image

    def draw(name: str, height: int = 96, width: int = 128) -> Path:
        pixels = np.full((height, width, 3), PAPER, np.uint8)
        pixels[5:15, 5:15] = INK
        pixels[40:60, 60:90] = INK
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return draw


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Let evaluations and promotions find this speed instead of measuring one for seconds; a test may change it.

    They compute on one thread: on tiny images several only wait for each other, for seconds on a busy machine.
    """
    import torch

    from unetpp_workflows import speed as module

    speed = {"mpx_per_second": 2.0, "peak_mb": 100.0, "engine": "openvino", "precision": "fp32", "device": "cpu",
             "tile": 512}  # fmt: skip
    monkeypatch.setattr(module, "measure_speed", lambda folder, tta="none", precision="auto": dict(speed))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield speed
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's MLflow store out of the user's home folder."""
    monkeypatch.setenv("UNETPP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without anything in it, which takes seconds to make."""
    from unetpp_workflows.mlflow_store import init_store

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    init_store(f"sqlite:///{database}")
    return database


@pytest.fixture
def ready_home(own_home: Path, empty_store: Path) -> Path:
    """A home folder whose store has been used before; what happens at first use is tested elsewhere."""
    own_home.mkdir()
    shutil.copyfile(empty_store, own_home / "mlflow.db")
    return own_home


FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A real Chromium that asks nothing of the network by itself."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here: install the system's package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=chromium, args=FLAGS, has_touch=True,
            viewport={"width": 1200, "height": 760},
        )  # fmt: skip
        yield context
        context.close()
