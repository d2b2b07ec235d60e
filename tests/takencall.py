"""A fork server of which the child takes a call and runs a program of the test."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def taken_call(
    path: str, program: str, then: Callable[[socket.socket], None]
) -> Iterator[subprocess.Popen[bytes]]:
    """Be a server at ``path`` of which the child, the yielded process, runs ``program``.

    ``then`` gets the connection when the child has taken the call; it is closed after it.
    """
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        subprocess.Popen(["sh", "-c", program]) as child,
    ):
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen()
        listener.settimeout(20 * PATIENCE)

        def serve() -> None:
            pidfd = os.pidfd_open(child.pid)
            with listener.accept()[0] as caller:
                caller.recv(1 << 16)
                caller.send(b"heard")
                socket.send_fds(caller, [b"taken %d" % child.pid], [pidfd])
                then(caller)
            os.close(pidfd)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield child
        finally:
            child.kill()
            thread.join()
