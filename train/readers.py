"""`from train import readers`: the readers of data sets under their short name, see train/data/readers.py."""
import sys

from .data import readers

sys.modules[__name__] = readers
