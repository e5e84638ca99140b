"""Metrics, comparisons and what is needed to make them."""
