"""Features of the kernel that runs the tests."""

from __future__ import annotations

import os
import re

import pytest

KERNEL = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))

# The tests work on tmpfs, as /run and pytest's directories may be.
maps_owners = pytest.mark.skipif(
    KERNEL < (6, 3), reason="this machine has no id-mapped mounts of tmpfs (Linux 6.3)"
)
