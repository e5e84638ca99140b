"""Checkpoints: one safetensors file each (store.py), and the import of official files (convert.py)."""
