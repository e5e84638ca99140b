"""Optional: faster ways through the same layers on a CPU."""
