"""Depthwise-separable convolutions with virtual concatenation: one public function per operation, no model knowledge.

Every operation has a plain-torch definition in `definition`, and a fused Triton kernel that computes the same function.
"""

from unetpp_kernels.definition import Resampling, upsample2x
from unetpp_kernels.operations import (
    Implementation,
    depthwise_conv,
    depthwise_pointwise,
    device_implementation,
    forced,
    implementation,
    pointwise_conv,
    pointwise_depthwise,
)

__all__ = [
    "Implementation",
    "Resampling",
    "depthwise_conv",
    "depthwise_pointwise",
    "device_implementation",
    "forced",
    "implementation",
    "pointwise_conv",
    "pointwise_depthwise",
    "upsample2x",
]
