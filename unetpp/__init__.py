"""Segment archives of gigapixel images with UNet++; importing it loads nothing heavy and touches no device."""

__version__ = "0.1.0"
