"""``python -m timewalk.cli``, as torchrun starts it."""

import sys

from timewalk.cli import main

if __name__ == "__main__":
    sys.exit(main())
