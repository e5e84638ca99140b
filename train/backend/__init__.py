"""Optimizer, sharding, caches: nothing of the method."""
