"""Kills a random daemon of a shim again and again: ``python -m tests.killing SECONDS``.

For a run of any ring with ``SHIM_TEST_KILL``: a daemon that is replaced must not be noticed.
The number of kills is written to standard error at each tenth.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def daemons() -> list[int]:
    """Return the pids of the shim's daemons in this pid namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            is_ours = "python" in (entry / "exe").readlink().name  # not another shim
            is_helper = b"-id" in _parent_words(entry)  # its own words come later
        except OSError:
            continue
        is_daemon = b"-namespace" in words and b"-id" in words
        if is_ours and is_daemon and not is_helper and words[-1] not in (b"start", b"delete"):
            found.append(int(entry.name))
    return found


def _parent_words(process: Path) -> list[bytes]:
    """Return the command line of the parent.

    A process that a daemon has just forked has the daemon's command line.
    """
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")


def main(seconds: float) -> None:
    """Kill one daemon each ``seconds`` on average, for ever."""
    kills = 0
    while True:
        time.sleep(random.uniform(0.5, 1.5) * seconds)
        if not (found := daemons()):
            continue
        with suppress(ProcessLookupError):
            os.kill(random.choice(found), signal.SIGKILL)
            kills += 1
            if kills % 10 == 0:
                print(f"{kills} daemons killed", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
