"""Segment archives of gigapixel images with UNet++; importing this package loads nothing heavy and touches no device."""

__version__ = "0.1.0"
