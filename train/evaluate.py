"""`python -m train.evaluate`: see train/tools/evaluate.py."""
import sys

from .tools.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
