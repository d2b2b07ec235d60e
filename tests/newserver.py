"""Makes the fork server of this process's environment, as a ``start`` does that finds none.

It prints the path of the server's socket.
"""

from __future__ import annotations

import sys
import time

from shim import names
from shim.start import launcher, newserver
from shim.start.identity import socket_path

if __name__ == "__main__":
    deadline = time.monotonic() + newserver.LIMIT
    listens = launcher.listens(socket_path()) or newserver.make(names.EXECUTABLE, deadline)
    print(socket_path())
    sys.exit(not listens)
