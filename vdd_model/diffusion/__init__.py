"""Diffusion: the schedule and its formulas (schedule.py), and sampling with any denoiser (sampler.py)."""
