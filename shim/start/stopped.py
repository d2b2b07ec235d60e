"""The socket of a fork server that accepts no calls any more, and stays for its shims.

It gets another name, so that the next server can have the one that callers know, and so that
``shimctl forkserver`` still finds this server.  The name begins with a dot, as that of each
file here that callers do not use.
"""

from __future__ import annotations

import os
from contextlib import suppress

from shim.errors import ShimError
from shim.linux import socketfiles, sockets

# With a pid it is no longer than the name of a socket that callers know.
_PREFIX = ".stopped-"


def is_name(name: str) -> bool:
    """Return whether ``name`` is that of such a socket."""
    return name.startswith(_PREFIX)


def rename(path: str, bound: tuple[int, ...]) -> str:
    """Rename the socket ``bound`` of this process at ``path``; return its new path.

    Return an empty text, and change nothing, if that is not possible.
    """
    directory = path.rpartition("/")[0]
    renamed = f"{directory}/{_PREFIX}{os.getpid()}"
    with suppress(ShimError, OSError):
        sockets.remove_dead(f"unix://{renamed}")
        os.link(path, renamed)
        if socketfiles.identity(renamed) == bound:
            socketfiles.remove(path, bound)
            return renamed
        os.unlink(renamed)  # noqa: PTH108 - a plain string
    return ""


def remove_dead(directory: str) -> None:
    """Remove the sockets of such servers that were killed."""
    with suppress(OSError):
        for name in os.listdir(directory):  # noqa: PTH208 - as above
            if is_name(name):
                with suppress(ShimError, OSError):
                    sockets.remove_dead(f"unix://{directory}/{name}")
