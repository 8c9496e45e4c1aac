"""A network without its margins: the middle of the whole result, for every kind of network and side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unetpp.model import GridConfig, UNet, UNetPlusPlus, halo
from unetpp.model.inner import Inner
from unetpp.model.margins import Margins, context, multiply_adds, strip_count, useful_share

CONFIGS = [
    GridConfig(classes=3, filters=(4, 6, 8, 10)),
    GridConfig(classes=3, filters=(4, 6, 8, 10), level=2),
    GridConfig(classes=1, filters=(4, 6, 8), conv="dw_pw", upsample="nearest"),
    GridConfig(classes=2, filters=(4, 6, 8), conv="standard", upsample="deconv", norm="none", deep_supervision=False),
    GridConfig(classes=2, filters=(2, 2, 3, 3, 4)),
]


def _network(kind: Any, config: GridConfig) -> Any:
    torch.manual_seed(2)
    network = kind(config).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases that are not 0: padding then shows
    return network


@pytest.mark.parametrize(
    ("kind", "config"),
    [*((UNetPlusPlus, config) for config in CONFIGS), *((UNet, config) for config in CONFIGS if config.level is None)],
)
@pytest.mark.parametrize(
    ("sides", "strips"),
    [((1, 1, 1, 1), 1), ((0, 1, 1, 1), 1), ((1, 0, 0, 1), 1), ((0, 0, 0, 0), 1), ((1, 1, 1, 1), 2), ((0, 1, 2, 0), 3)],
)
def test_the_middle_is_that_of_the_whole(config: GridConfig, kind: Any, sides: Margins, strips: int) -> None:
    network, margin = _network(kind, config), halo(config)
    top, left, bottom, right = margins = tuple(margin * side for side in sides)  # type: ignore[misc]
    rows = 3 * config.multiple if strips == 1 else 5 * max(config.multiple, 8)  # of which 3 make no whole number
    height, width = top + bottom + rows, left + right + 2 * config.multiple
    image = torch.randn(1, 3, height, width, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(image)[..., top : height - bottom, left : width - right]
        inner = Inner(network, margins, strips)(image)
        heads, of_whole = [], []
        if kind is UNetPlusPlus:
            heads, of_whole = Inner(network, margins, strips).heads(image), network.heads(image)
    assert len(heads) == len(of_whole)
    assert inner.shape == whole.shape
    # In fp64, where sums of another order differ by 1e-15: one wrong pixel would show.
    assert (inner - whole).abs().max() <= 1e-12 * whole.abs().max()
    for head, expected in zip(heads, of_whole, strict=True):
        middle = expected[..., top : height - bottom, left : width - right]
        assert head.shape == middle.shape and (head - middle).abs().max() <= 1e-12 * middle.abs().max()


def test_less_context_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[-1]
    network, margin = _network(UNetPlusPlus, config), halo(config)
    image = torch.randn(1, 3, 2 * margin + 64, 2 * margin + 64, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(image)[..., margin:-margin, margin:-margin]
        monkeypatch.setattr("unetpp.model.margins._REACH", 1)
        cut = Inner(network, (margin,) * 4)(image)
    assert (cut - whole).abs().max() > 1e-6 * whole.abs().max()


def test_context_and_share_by_hand() -> None:
    config = GridConfig(filters=(32, 64, 128, 256, 512))
    assert [context(config, level) for level in range(4)] == [10, 12, 12, 10]
    assert useful_share(config, 496, 1280, (0, 0, 0, 0)) == 1
    # One level: X^{0,0} on the whole tile, X^{0,1} on 4 px around, X^{1,0} on a quarter of the whole.
    small = GridConfig(bands=1, classes=2, filters=(2, 3), conv="dw_pw")
    first, last = 9 * 1 * 2 + 9 * 2 + 4, 9 * 5 + 5 * 2 + 9 * 2 + 4
    below = 9 * 2 + 2 * 3 + 9 * 3 + 9
    work = first * 48**2 + last * 24**2 + below * 24**2
    assert context(small, 0) == 4
    assert useful_share(small, 48, 48, (16,) * 4) == pytest.approx((first * 16**2 + last * 16**2 + below * 8**2) / work)
    # Two strips of 256 rows, of which each computes 4 of the other's too.
    work = first * 544 * 48 + last * (544 + 8 - 24) * 24 + below * 272 * 24
    wanted = (first + last) * 512 * 16 + below * 256 * 8
    assert useful_share(small, 544, 48, (16,) * 4) == pytest.approx(wanted / work)


@pytest.mark.parametrize(("kind", "network"), [("unetplusplus", UNetPlusPlus), ("unet", UNet)])
def test_multiply_adds_are_those_that_torch_counts(kind: Any, network: type[UNet] | type[UNetPlusPlus]) -> None:
    """... in standard convolutions, with those of the heads, which `multiply_adds` leaves out."""
    model = network(GridConfig(bands=3, classes=2, filters=(4, 6, 8), conv="standard", norm="none")).eval()
    heads = len(model.head_convs) if kind == "unetplusplus" else 1
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.heads(torch.zeros(1, 3, 16, 16))
    assert multiply_adds(model.config, kind) + heads * 4 * 2 == counter.get_total_flops() / 2 / 16**2


def test_strips_are_powers_of_two() -> None:
    counts = [strip_count(rows) for rows in (0, 16, 511, 512, 1023, 1024, 1280, 2047, 2048, 5000)]
    assert counts == [1, 1, 1, 2, 2, 4, 4, 4, 8, 16]
