"""Optimizer, sharding, signals: nothing of the method."""
