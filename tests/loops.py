"""How long the tests loop that look for a race.

Each loop is a few times as long as is needed to find the faults that it was written for.
``SHIM_TEST_LONG=1`` makes them as long as before a release.
"""

from __future__ import annotations

import os

LONG = os.environ.get("SHIM_TEST_LONG", "") == "1"


def turns(usual: int, long: int) -> int:
    """Return the number of turns of a loop."""
    return long if LONG else usual
