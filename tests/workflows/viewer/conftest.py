"""Two small archives of drawn pictures, segmented by networks whose answer is known, and a viewer over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    import uvicorn

    from unetpp_workflows.viewer.app import create_app

    app = create_app([archives.first, archives.second])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
