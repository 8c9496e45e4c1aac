"""Fixtures shared by every test: where the real sample data lies, and what may skip."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.disk import mount
from tests.object_store import SLOW_S, ObjectStore, serve

GPU_REASON = "needs a CUDA device"
# Ray gives its workers a lower priority, so that beside the other half of the suite they would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session", autouse=True)
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave the user's own folder alone; graphs that one of them made serve the others of its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETPP_HOME", str(tmp_path_factory.mktemp("user")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real samples named by UNETPP_DATA; tests that need it skip where it is not set."""
    folder = os.environ.get("UNETPP_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNETPP_DATA is not set to the folder of real sample images")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model package: 3 bands uint8, 3 classes (values 0, 1, 7), random weights, multiple 4, halo 28."""
    import torch

    from unetpp.model import GridConfig, UNetPlusPlus
    from unetpp.package import ClassInfo, ModelSpec, save_package

    config = GridConfig(bands=3, classes=3, filters=(4, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = UNetPlusPlus(config).eval()
        with torch.no_grad():
            # Centred logits, so that real images get all three classes.
            noise = torch.nn.functional.avg_pool2d(torch.randn(1, 3, 192, 192), 3, 1, 1) * 3
            model.head_convs["2"].bias -= model(noise).mean((0, 2, 3))
    classes = (
        ClassInfo(value=0, name="background", color=(0, 0, 0), background=True),
        ClassInfo(value=1, name="red", color=(200, 0, 0)),
        ClassInfo(value=7, name="blue", color=(0, 0, 200)),
    )
    spec = ModelSpec(
        name="tiny",
        architecture=config,
        classes=classes,
        bands=("red", "green", "blue"),
        mean=(170.4, 150.0, 180.0),
        std=(60.0, 50.0, 40.0),
    )
    return save_package(tmp_path_factory.mktemp("tiny"), model, spec, "A tiny random model.").folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Make an empty file system of so many KiB, where writing more fails as it does on a full disk."""
    with ExitStack() as mounted:

        def disk(kib: int) -> Path:
            mount(tmp_path / "disk", kib)
            mounted.callback(subprocess.run, ["umount", "-l", str(tmp_path / "disk")], check=True)
            return tmp_path / "disk"

        yield disk


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectStore]:
    with serve() as store:
        yield store


@pytest.fixture
def object_store(object_server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """A real S3 server that behaves until told otherwise; the environment leads there, pauses are short."""
    from unetpp.io import remote

    object_server.proxy.misbehave()
    for name, value in {
        "AWS_ENDPOINT_URL": object_server.proxy.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
        "UNETPP_STAGING": str(tmp_path / "staging"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT_S", SLOW_S / 2)
    remote._bucket_store.cache_clear()
    return object_server


def pytest_configure() -> None:
    # A shell that starts pytest in the background ignores Ctrl-C for it and its children; some tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason=GPU_REASON))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With UNETPP_NO_SKIP set (as in CI), a test that skips for want of anything but a GPU fails."""
    report = yield  # type: ignore[misc]
    skipped = report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("gpu")
    if skipped and os.environ.get("UNETPP_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may skip: {report.longrepr}"
    return report  # type: ignore[return-value]
