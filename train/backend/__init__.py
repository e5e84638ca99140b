"""Optimizer, sharding: nothing of the method."""
