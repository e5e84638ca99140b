"""Training data: folders, readers, clips."""
