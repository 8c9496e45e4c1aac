"""UNet++ and its U-Net baseline as plain single-device torch modules; needs only torch and `unetpp_kernels`.

Networks are imported where they are used, and torch with them: a process that runs a kept graph needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unetpp.model.config import GridConfig
from unetpp.model.receptive_field import halo, receptive_radius

if TYPE_CHECKING:
    from unetpp.model.grid import UNetPlusPlus
    from unetpp.model.unet import UNet

__all__ = ["GridConfig", "UNet", "UNetPlusPlus", "halo", "receptive_radius"]
_NETWORKS = {"UNet": "unetpp.model.unet", "UNetPlusPlus": "unetpp.model.grid"}


def __getattr__(name: str) -> Any:
    if name not in _NETWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NETWORKS[name]), name)
