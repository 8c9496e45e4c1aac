"""Models come from elsewhere and go elsewhere by command; `mlflow models serve` answers for a registered version."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.unetpp.test_foreign import trained
from unetpp.package import load_package
from unetpp_workflows.cli import app
from unetpp_workflows.mlflow_store import store_uri
from unetpp_workflows.registry import register_package


def run(*command: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})
    return found.exit_code, found.output


def test_a_state_dict_becomes_a_package_and_an_onnx_file(tmp_path: Path) -> None:
    torch.save(trained(2, True).state_dict(), tmp_path / "nested.pth")
    command = ["models", "import", tmp_path / "nested.pth", "--name", "cells", "--classes", "background,cell"]
    norm = ["--mean", "120,110,100", "--std", "50,50,50"]
    code, text = run(*command, *norm, "-o", tmp_path / "cells")
    assert code == 0 and "filters [4, 6, 8]" in text, text
    spec = load_package(tmp_path / "cells").spec
    assert [c.name for c in spec.classes] == ["background", "cell"] and spec.mean == (120.0, 110.0, 100.0)
    code, text = run("models", "export", tmp_path / "cells", "--to", "onnx", "-o", tmp_path / "cells.onnx")
    assert code == 0 and (tmp_path / "cells.onnx").stat().st_size > 1000, text
    assert run(*command, *norm, "-o", tmp_path / "cells")[0] == 2  # never over something
    code, text = run(*command, *norm, "-o", tmp_path / "nested.pth")
    assert code == 2 and "is a file or not empty; choose a new folder" in text
    code, text = run(*command[:-1], "one,two,three", *norm, "-o", tmp_path / "three")
    assert code == 2 and "3 classes described for 2 logits" in text
    code, text = run(*command[:-1], "one,", *norm, "-o", tmp_path / "nameless")
    assert code == 2 and "classes 'one, ': one has no name" in text and not (tmp_path / "nameless").exists()
    code, text = run(*command, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "-o", tmp_path / "small")
    assert code == 2 and "between 0 and 1" in text and not (tmp_path / "small").exists()
    spoilt = trained(2, True)
    spoilt.conv1_1.bn1.weight.data[2] = torch.nan
    torch.save(spoilt.state_dict(), tmp_path / "nested.pth")
    code, text = run(*command, *norm, "-o", tmp_path / "spoilt")
    assert code == 2 and "'conv1_1.bn1.weight' is not finite" in text and not (tmp_path / "spoilt").exists()
    assert run("models", "export", tmp_path / "cells", "--to", "coreml", "-o", tmp_path / "x")[0] == 2
    assert run("models", "export", tmp_path / "cells", "--to", "onnx", "-o", tmp_path / "x.pt")[0] == 2


@pytest.mark.slow
def test_mlflow_serves_a_registered_version(blots: Callable[..., Path], ink_package: Path, own_home: Path) -> None:
    from PIL import Image

    register_package(ink_package, alias="champion")
    # It starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (own_home / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/ink@champion", "--env-manager", "local",
         "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env={**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": store_uri(), "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        pixels = np.asarray(Image.open(blots("a.png")))[None]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": pixels.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        labels = np.array(json.loads(_answer(request, process, own_home / "serve.log"))["predictions"])
        np.testing.assert_array_equal(labels, (pixels[..., 0] < 112).astype(int))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)  # it starts workers
        process.wait(60)


def _answer(request: urllib.request.Request, process: subprocess.Popen[bytes], log: Path) -> bytes:
    """Ask until the server is there."""
    end = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (this machine)
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
