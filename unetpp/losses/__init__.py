"""What training minimises; knows logits, labels and object numbers, not networks, data or who else computes a part."""

from unetpp.losses.config import LossConfig
from unetpp.losses.pixels import IGNORE
from unetpp.losses.supervision import hybrid_loss, supervised_loss
from unetpp.losses.touching import touching_weights

__all__ = ["IGNORE", "LossConfig", "hybrid_loss", "supervised_loss", "touching_weights"]
