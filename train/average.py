"""`python -m train.average`: see train/tools/average.py."""
import sys

from .tools.average import main

if __name__ == "__main__":
    sys.exit(main())
