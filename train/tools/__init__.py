"""Evaluation, ablation, averaging."""
