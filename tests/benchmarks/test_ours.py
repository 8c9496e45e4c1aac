"""Tests that the benchmark's standard network is the bundled one, and what its figures are computed from."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # the benchmarks are scripts beside each other, not a package

from ours import multiplied_out

from unetpp.model import GridConfig, UNetPlusPlus


@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "deconv"])
def test_multiplied_out_weights_compute_the_same_function(upsample: str) -> None:
    torch.manual_seed(0)
    switches = {"classes": 2, "filters": (4, 8, 16), "upsample": upsample}
    separable = UNetPlusPlus(GridConfig(conv="pw_dw", **switches))
    x = torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        separable.train()(x)  # running statistics unlike their initial values
        standard = UNetPlusPlus(GridConfig(conv="standard", **switches))
        standard.load_state_dict(multiplied_out(separable.state_dict()))
        expected, found = separable.eval()(x).numpy(), standard.eval()(x).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
