"""Diffusion: the schedule and its formulas (schedule.py), and sampling with any denoiser (sampler.py)."""
from .schedule import Schedule, make_schedule, offset_noise, precondition, q_sample, v_target, x0_from_v

__all__ = ["Schedule", "precondition", "make_schedule", "offset_noise", "q_sample", "v_target", "x0_from_v"]
