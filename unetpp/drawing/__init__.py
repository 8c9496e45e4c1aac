"""Draws synthetic slides and scenes with known truth from a seed; knows nothing of models and segments nothing."""

from unetpp.drawing.scene import SCENE_CLASSES, DrawnScene, draw_scene
from unetpp.drawing.slide import DrawnSlide, draw_slide

__all__ = ["SCENE_CLASSES", "DrawnScene", "DrawnSlide", "draw_scene", "draw_slide"]
