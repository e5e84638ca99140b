"""Motion deblurring of video with a latent video diffusion model. Standalone: needs no ComfyUI."""

__version__ = "0.1.0"
__all__ = ["DeblurOptions", "Deblurrer"]


def __getattr__(name: str):
    """The public names, imported when they are first asked for: they bring torch."""
    if name in __all__:
        from .inference import pipeline
        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
