"""Two small archives of drawn pictures, segmented by networks whose answer is known, and a viewer over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 700, 1100
HOSTILE = "<img src=x onerror=document.title=1>&'"


@dataclass(frozen=True)
class Archives:
    first: Path
    second: Path
    pixels: dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="session")
def archives(ink_package: Path, ink_variant: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """Output `first` of two pictures, one in a folder with a hostile name, and `second` of one by another network."""
    from unetpp_workflows.config import load_config
    from unetpp_workflows.pipeline import segment

    root = tmp_path_factory.mktemp("viewer")
    (root / "in").mkdir()
    noise = np.random.default_rng(7).integers(0, 30, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    pixels = {}
    for number, name in enumerate(("plain.png", "other.png")):
        drawn = np.full((HEIGHT, WIDTH, 3), 220, np.uint8) - noise
        drawn[100 : 200 + 100 * number, 600:800] = 20 + noise[:100, :200].repeat(1 + number, 0)
        drawn[400:460, 100:180] = 90
        pixels[name] = drawn
        Image.fromarray(drawn).save(root / "in" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETPP_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        darker = ink_variant(root / "darker", threshold=60, name="darker")
        first = segment(
            [str(root / "in" / name) for name in pixels],
            model=str(ink_package),
            output=root / "first",
            config=load_config(None, options={"output.probabilities": True}, sets=()),
        )
        second = segment([str(root / "in" / "plain.png")], model=str(darker), output=root / "second")
    assert first.exit_code == 0 and second.exit_code == 0, first.sentence() + second.sentence()
    # `segment` gives no folder such a name, but a person can.
    (root / "first" / "other").rename(root / "first" / HOSTILE)
    return Archives(root / "first", root / "second", pixels)


@pytest.fixture(scope="session")
def page_built() -> None:
    from unetpp_workflows.viewer.app import STATIC

    if not (STATIC / "index.html").is_file():
        pytest.skip("the viewer's page is not built: run make viewer (needs npm)")


@pytest.fixture(scope="session")
def address(archives: Archives, page_built: None) -> Iterator[str]:
    """A real server over both archives; its address."""
    with served([archives.first, archives.second]) as address:
        yield address


DOUBTS = {"a": (20_000, 400), "b": (5_000, 10_000), "c": (10_000, 4_000)}
"""Pixels of ink and of smudge in each picture: by area a, c, b and by uncertainty b, c, a."""
INK_AT, SMUDGE_AT, PAPER_AT = (75, 150), (400, 150), (550, 300)


@pytest.fixture(scope="session")
def doubts(ink_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of pictures 600 x 340 with both maps, by a network whose two heads differ on smudges only."""
    import torch

    from unetpp.model import GridConfig, UNetPlusPlus
    from unetpp.package import load_package, save_package
    from unetpp_workflows.config import load_config
    from unetpp_workflows.pipeline import segment

    root = tmp_path_factory.mktemp("doubts")
    config = GridConfig(bands=3, classes=1, filters=(2, 2, 2), norm="none", deep_supervision=True)
    network = UNetPlusPlus(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.zero_()
            centre = weight.shape[-1] ** 2 // 2
            if name.startswith("nodes.0_") and not name.endswith("bias"):
                weight.view(-1)[centre] = -1.0 if name.endswith("0_0.first.standard") else 1.0
            elif name.startswith("head_convs"):
                thresholds = {"1": -5.0, "2": -21.25}
                weight.view(-1)[0] = thresholds[name.split(".")[1]] if name.endswith("bias") else 20.0
    spec = replace(load_package(ink_package).spec, name="doubts", architecture=config)
    package = save_package(root / "package", network, spec, "# doubts\n").folder
    (root / "in").mkdir()
    for name, (ink, smudge) in DOUBTS.items():
        drawn = np.full((340, 600, 3), 220, np.uint8)
        drawn[100:200, 50 : 50 + ink // 100] = 20
        drawn[100:200, 360 : 360 + smudge // 100] = 90
        Image.fromarray(drawn).save(root / "in" / f"{name}.png")
    options = {"output.probabilities": True, "output.uncertainty": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETPP_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = segment(
            [str(root / "in")],
            model=str(package),
            output=root / "out",
            config=load_config(None, options=options, sets=()),
        )
    assert done.exit_code == 0, done.sentence()
    return root / "out"


@pytest.fixture(scope="session")
def doubts_address(doubts: Path, page_built: None) -> Iterator[str]:
    """A real server over `doubts`; its address."""
    with served([doubts]) as address:
        yield address


@contextmanager
def served(outputs: list[Path], port: int = 0) -> Iterator[str]:
    import uvicorn

    from unetpp_workflows.viewer.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(outputs), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
