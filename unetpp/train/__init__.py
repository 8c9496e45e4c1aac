"""A plain training loop for one process and one device; needs torch and numpy, and knows no scheduler or registry."""

from unetpp.train.config import TrainConfig
from unetpp.train.data import Sample
from unetpp.train.loop import Epoch, TrainResult, fit

__all__ = ["Epoch", "Sample", "TrainConfig", "TrainResult", "fit"]
