"""Counts predictions against truth and turns counts into figures; knows arrays, not where they come from.

Every streaming metric has `update` with one image, `merge`, and `state` with `from_state`. States are whole numbers
that add up, so images may be shared among workers in any way and the figures are the same to the last bit.
"""

from unetpp.metrics.bootstrap import bootstrap
from unetpp.metrics.boundary import BoundaryF1
from unetpp.metrics.calibration import CalibrationError, Temperature
from unetpp.metrics.confusion import Confusion, judged_iou
from unetpp.metrics.counts import IGNORE
from unetpp.metrics.curves import PrecisionRecall
from unetpp.metrics.objects import ObjectQuality

__all__ = [
    "IGNORE",
    "BoundaryF1",
    "CalibrationError",
    "Confusion",
    "ObjectQuality",
    "PrecisionRecall",
    "Temperature",
    "bootstrap",
    "judged_iou",
]
