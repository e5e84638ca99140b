"""The door that scripts of the first version use; the pipeline is in `vdd_model.inference`."""
from .inference.pipeline import DeblurOptions, Deblurrer

__all__ = ["DeblurOptions", "Deblurrer"]
