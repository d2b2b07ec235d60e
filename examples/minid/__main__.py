"""``python examples/minid -c FILE``, or ``python -m minid`` where the package is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by its path: the modules are siblings, and so is ``logs``
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from minid.cli import main

if __name__ == "__main__":
    sys.exit(main())
