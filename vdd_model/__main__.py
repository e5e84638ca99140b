"""`python -m vdd_model` is `vdd`."""
import sys

from .cli import main

sys.exit(main())
