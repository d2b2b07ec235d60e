"""``python examples/minid -c FILE``, or ``python -m minid`` if the package is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by its path: put the package's parent on sys.path, not the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from minid.cli import main

if __name__ == "__main__":
    sys.exit(main())
