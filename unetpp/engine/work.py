"""How much of what an engine computes serves the pixels that are written; measures nothing."""

from __future__ import annotations

from unetpp.model import margins as whole_levels
from unetpp.model.margins import Margins
from unetpp.native import need
from unetpp.package import ModelSpec


def leaves_margins_out(engine: str) -> bool:
    """Say whether an engine spares itself work in margins; the others compute whole tiles."""
    return engine in ("native", "openvino")


def useful_share(engine: str, spec: ModelSpec, shape: tuple[int, int], margins: Margins) -> float:
    """Return the part of all multiply-adds that serve the wanted pixels of a tile (H, W), margins included in it."""
    share = need.useful_share if engine == "native" else whole_levels.useful_share
    return share(spec.architecture, *shape, margins, spec.network)
