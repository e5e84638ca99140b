"""Motion deblurring of video with a latent video diffusion model. Standalone: needs no ComfyUI."""

__version__ = "0.1.0"
__all__ = ["DeblurOptions", "Deblurrer"]


def __getattr__(name: str):
    """The public names, imported when they are first asked for: the one brings torch."""
    if name == "Deblurrer":
        from .inference.pipeline import Deblurrer
        return Deblurrer
    if name == "DeblurOptions":
        from .options import DeblurOptions
        return DeblurOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
