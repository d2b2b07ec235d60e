"""Names of the sockets of fork servers with equal attributes, but of different versions.

The name of such a socket begins with a hash of the attributes, up to the hyphen
(:mod:`shim.start.identity`).
"""

from __future__ import annotations

import os
from contextlib import suppress


def are_alike(path: str, other: str) -> bool:
    """Return whether the fork servers at two paths have equal attributes."""
    return _begins(path) == _begins(other)


def beside(path: str, ending: str) -> str:
    """Return the path of a file that all fork servers with equal attributes share."""
    directory, beginning = _begins(path)
    return f"{directory}/.{beginning}{ending}"


def others(path: str) -> list[str]:
    """Return the sockets of other fork servers with equal attributes, the newest last.

    :raises OSError: the directory cannot be read.
    """
    directory, beginning = _begins(path)
    found = []
    for name in os.listdir(directory):  # noqa: PTH208 - plain strings
        one = f"{directory}/{name}"
        if one != path and name.startswith(f"{beginning}-"):
            with suppress(FileNotFoundError):
                found.append((os.lstat(one).st_mtime_ns, one))
    return [one for _, one in sorted(found)]


def _begins(path: str) -> tuple[str, str]:
    """Return the directory, and the beginning of the name."""
    directory, _, name = path.rpartition("/")
    return directory, name.partition("-")[0]
