"""`python -m vdd_model` is `vdd`."""
import sys

from .app.cli import main

sys.exit(main())
