"""``python -m shim`` runs the executable ``containerd-shim-trio-v2``."""

from __future__ import annotations

import sys

from shim.start.launcher import main

if __name__ == "__main__":
    sys.exit(main())
