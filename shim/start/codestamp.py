"""The inodes and times of the source files that this process has loaded.

The fork server compares them on each call: a change means that the server is outdated.
"""

from __future__ import annotations

import os
import sys
from functools import cache


def code_stamp() -> list[tuple[int, int]]:
    """Return the inode and the modification time (ns) of each loaded file of the package.

    The value changes when one of the files is replaced or edited; (0, 0) is a missing file.
    """
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
    # Copies, which lie together in memory.  The modules' own strings are spread over the
    # heap: reading them writes reference counts, and so copies pages shared with a child.
    return [os.fsencode(path) for path in paths]
