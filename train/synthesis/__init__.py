"""Blurred clips from sharp pictures."""
