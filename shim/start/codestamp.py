"""The state of the files whose code this process has loaded."""

from __future__ import annotations

import os
import sys
from functools import cache


def code_stamp() -> list[tuple[int, int]]:
    """Return what changes whenever a file does whose code is loaded here."""
    found = []
    for path in _loaded():
        try:
            info = os.stat(path)  # noqa: PTH116 - on every call
        except OSError:
            found.append((0, 0))
        else:
            found.append((info.st_ino, info.st_mtime_ns))
    return found


@cache
def _loaded() -> list[bytes]:
    modules = [module for name, module in sys.modules.items() if name.startswith("shim.")]
    paths = [path for module in modules if (path := getattr(module, "__file__", None))]
    # Copies that lie together: the modules' own are all over the heap, where each
    # look at one would copy a page that the last child shares.
    return [os.fsencode(path) for path in paths]
