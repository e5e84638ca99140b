"""The door that scripts of the first version use; synthesised camera shake is in `vdd_model.measure`."""
from .measure.motion import camera_shake

__all__ = ["camera_shake"]
