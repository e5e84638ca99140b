"""`python -m train.ablate`: see train/tools/ablate.py."""
import sys

from .tools.ablate import main

if __name__ == "__main__":
    sys.exit(main())
