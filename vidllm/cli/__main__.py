"""``python -m vidllm.cli``, for launchers that start modules."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
