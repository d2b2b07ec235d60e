"""The fifo ``log`` in a container's bundle, which a manager opened to read the shim's log.

A manager copies the lines of each bundle's fifo into its own log.  The daemon's fd 2 is the
fifo of the bundle for which it was started; here are those of its other containers.

Source: containerd core/runtime/v2/shim_unix.go openShimLog.
"""

from __future__ import annotations

import os
import stat

from shim import log


class LogFifo:
    """The fifo of container ``id_``.  Lines about it are written there until :meth:`close`."""

    def __init__(self, id_: str, bundle: str) -> None:
        self._id = id_
        self._path = f"{bundle}/log"
        self._fd = -1

    def open(self) -> None:
        """Open the fifo, if there is one, without waiting for its reader.

        The fd is open for reading too, so that the fifo survives a restart of the manager.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            return
        self._fd = fd
        log.attach(self._id, fd)

    def close(self) -> None:
        """Close the fifo; a second call does nothing."""
        if self._fd >= 0:
            log.detach(self._id)
            os.close(self._fd)
            self._fd = -1
