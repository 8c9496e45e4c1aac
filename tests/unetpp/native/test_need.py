"""Which part of a node is needed, against what autograd says that a result depends on."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from unetpp.model.config import GridConfig
from unetpp.model.order import Kind, Name, order_of
from unetpp.native.need import Region, regions, useful_share

SHAPE = (96, 112)
RESULTS = [
    Region(32, 32, 33, 33),
    Region(33, 35, 34, 48),
    Region(39, 38, 58, 59),
    Region(48, 48, 64, 64),
    Region(0, 0, 1, 1),
    Region(95, 100, 96, 112),
    Region(47, 0, 48, 112),
]


def needed(kind: Kind, config: GridConfig, result: Region, heads: tuple[Name, ...]) -> dict[Name, Region]:
    """Return the box of pixels of every node that have a gradient: of sums, so that none is hidden by a ReLU."""
    kernel, nodes = torch.ones(1, 1, 3, 3, dtype=torch.double), dict[Name, torch.Tensor]()
    image = torch.ones(1, 1, *SHAPE, dtype=torch.double, requires_grad=True)
    how = {} if config.upsample == "nearest" else {"mode": "bilinear", "align_corners": False}
    for step in order_of(kind, config):
        read = [F.avg_pool2d(nodes[name], 2) if step.pooled else nodes[name] for name in step.sources] or [image]
        if step.low is not None:
            read.append(F.interpolate(nodes[step.low], scale_factor=2, **how))
        found = F.conv2d(F.conv2d(torch.stack(read).sum(0), kernel, padding=1), kernel, padding=1)
        nodes[step.node] = found / found.mean().detach()
        nodes[step.node].retain_grad()
    torch.stack(
        [nodes[name][..., result.y0 : result.y1, result.x0 : result.x1].sum() for name in heads]
    ).sum().backward()
    boxes = {}
    for name, value in nodes.items():
        used = torch.zeros(1, 1) if value.grad is None else value.grad[0, 0] != 0
        if used.any():
            ys, xs = used.any(1).nonzero()[:, 0].tolist(), used.any(0).nonzero()[:, 0].tolist()
            boxes[name] = Region(ys[0], xs[0], ys[-1] + 1, xs[-1] + 1)
    return boxes


@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("kind", "depth", "level"),
    [("unetplusplus", 1, None), ("unetplusplus", 3, None), ("unetplusplus", 4, 2), ("unet", 4, None)],
)
def test_what_is_read_is_computed_and_no_more(kind: Kind, depth: int, level: int | None, upsample: str) -> None:
    """Rows are exact for bilinear upsampling. Columns come in pairs, of every level below."""
    config = GridConfig(
        filters=(1,) * (depth + 1), level=level, upsample="nearest" if upsample == "nearest" else "bilinear"
    )
    for result in RESULTS:
        for heads in {((0, config.last),), ((0, 1),)} if kind == "unetplusplus" else {((0, config.last),)}:
            wanted = needed(kind, config, result, heads)
            found = regions(order_of(kind, config), SHAPE, result, heads)
            assert found.keys() == wanted.keys()
            for name, have in found.items():
                want, (height, width) = wanted[name], (side >> name[0] for side in SHAPE)
                assert have.y0 <= want.y0 and have.y1 >= want.y1 and have.x0 <= want.x0 and have.x1 >= want.x1, name
                assert have.y0 >= 0 and have.x0 >= 0 and have.y1 <= height and have.x1 <= width
                assert have.x0 % 2 == 0 and (have.x1 % 2 == 0 or have.x1 == width)
                more = max(want.y0 - have.y0, have.y1 - want.y1)
                if upsample == "bilinear":
                    assert more == 0, (name, result)
                below = 2 ** (config.last - name[0])
                assert max(more, want.x0 - have.x0, have.x1 - want.x1) <= 3 * below, (name, result)
                if upsample == "bilinear" and name[1] > 0:
                    assert max(want.x0 - have.x0, have.x1 - want.x1) <= 2, (name, result)


def test_several_heads_need_what_each_of_them_needs() -> None:
    config = GridConfig(filters=(1,) * 4)
    steps, result = order_of("unetplusplus", config), Region(40, 41, 50, 52)
    every = [regions(steps, SHAPE, result, ((0, j),)) for j in (1, 2, 3)]
    together = regions(steps, SHAPE, result, ((0, 1), (0, 2), (0, 3)))
    for name, region in together.items():
        parts = [found[name] for found in every if name in found]
        edges = list(zip(*parts, strict=True))
        assert region == Region(min(edges[0]), min(edges[1]), max(edges[2]), max(edges[3]))


def test_useful_share_by_hand() -> None:
    """X^{0,0}, X^{1,0} and X^{0,1} of one band and one channel each, in a tile of 32 px with 8 px around."""
    config = GridConfig(bands=1, classes=1, filters=(1, 1))
    # Multiply-adds per pixel: 9 + 9 + 1; 1 + 9 and 9 + 1; 1 + 1/4 + 9 and 9 + 1.
    first, below, last = 19.0, 20.0, 20.25
    # X^{0,1} of 16 px reads 20; of 8 px below, 12; which reads 16, 32 px above: all there is.
    done = last * 16 * 16 + below * 12 * 12 + first * 32 * 32
    wanted = (last + below / 4 + first) * 16 * 16
    assert useful_share(config, 32, 32, (8, 8, 8, 8)) == pytest.approx(wanted / done)
    assert useful_share(config, 32, 32, (0, 0, 0, 0)) == pytest.approx(1)
    # Without rows above and below, columns as before.
    done = last * 32 * 16 + below * 16 * 12 + first * 32 * 32
    wanted = (last + below / 4 + first) * 32 * 16
    assert useful_share(config, 32, 32, (0, 8, 0, 8)) == pytest.approx(wanted / done)


def test_larger_tiles_are_more_useful() -> None:
    config = GridConfig(filters=(8, 16, 32, 64))
    for kind in ("unetplusplus", "unet"):
        shares = [useful_share(config, side, side, (48,) * 4, kind) for side in (128, 256, 512, 1024)]
        assert all(a < b for a, b in itertools.pairwise(shares)) and shares[0] > 0 and shares[-1] < 1
