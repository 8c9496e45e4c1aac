"""UNet++ and its U-Net baseline as plain single-device torch modules; needs only torch and `unetpp_kernels`."""

from unetpp.model.config import GridConfig
from unetpp.model.deploy import Deployed, deploy
from unetpp.model.fold import fold
from unetpp.model.grid import UNetPlusPlus
from unetpp.model.receptive_field import halo, receptive_radius
from unetpp.model.unet import UNet

__all__ = ["Deployed", "GridConfig", "UNet", "UNetPlusPlus", "deploy", "fold", "halo", "receptive_radius"]
