"""Training on one device, alone or as one of several workers; needs torch and numpy, knows no scheduler or registry."""

from unetpp.train.config import AugmentConfig, TrainConfig
from unetpp.train.loop import Epoch, TrainResult, fit
from unetpp.train.ranks import Ranks
from unetpp.train.source import ArraySource, Source

__all__ = ["ArraySource", "AugmentConfig", "Epoch", "Ranks", "Source", "TrainConfig", "TrainResult", "fit"]
