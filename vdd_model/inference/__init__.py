"""A clip through the model: windows, tiles, pipeline."""
