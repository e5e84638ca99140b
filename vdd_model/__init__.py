"""Motion deblurring of video with a latent video diffusion model. Standalone: needs no ComfyUI."""

__version__ = "0.1.0"
