"""Checkpoints: one safetensors file each (store.py), and the import of official files (convert.py)."""
from .store import (
    BUILT_IN,
    CONFIG,
    CheckpointError,
    config_tensor,
    load,
    read_config,
    read_state,
    read_training,
    resolve,
    save,
    save_state,
)

__all__ = ["BUILT_IN", "CONFIG", "CheckpointError", "config_tensor", "load", "read_config", "read_state", "read_training",
           "resolve", "save", "save_state"]
