"""Depthwise-separable convolutions with virtual concatenation: one public function per operation, no model knowledge.

Every operation has a plain-torch definition in `definition`, and a fused Triton kernel that computes the same function.
"""

from unetpp_kernels.definition import Resampling, upsample2x
from unetpp_kernels.normalised import Map, Normalised, stored
from unetpp_kernels.operations import (
    Implementation,
    batch_norm,
    depthwise_conv,
    depthwise_pointwise,
    depthwise_pointwise_moments,
    device_implementation,
    forced,
    implementation,
    max_pool,
    moments,
    normalised,
    pointwise_conv,
    pointwise_depthwise,
    pointwise_depthwise_moments,
)

__all__ = [
    "Implementation",
    "Map",
    "Normalised",
    "Resampling",
    "batch_norm",
    "depthwise_conv",
    "depthwise_pointwise",
    "depthwise_pointwise_moments",
    "device_implementation",
    "forced",
    "implementation",
    "max_pool",
    "moments",
    "normalised",
    "pointwise_conv",
    "pointwise_depthwise",
    "pointwise_depthwise_moments",
    "stored",
    "upsample2x",
]
