"""Depthwise-separable convolutions with virtual concatenation: one public function per operation, no model knowledge.

Every operation has a plain-torch definition in `definition`; today it is also the only implementation. Faster ones
must compute the same function, forward and backward.
"""

from unetpp_kernels.definition import Resampling, depthwise_pointwise, pointwise_depthwise, upsample2x

__all__ = ["Resampling", "depthwise_pointwise", "pointwise_depthwise", "upsample2x"]
