"""The open files of a daemon, to find one that it does not close."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

import trio

from tests.e2e.waiting import PATIENCE


def open_files(pid: int) -> list[str]:
    """Return what each fd of ``pid`` refers to, "socket:[4711]" for example."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found


async def wait_no_more_files(pid: int, before: list[str]) -> None:
    """Wait until ``pid`` has no more open files than ``before``.

    A thread of the daemon closes its file later: see shim/cgroup/moving.py.
    """
    with trio.move_on_after(5 * PATIENCE):
        while len(open_files(pid)) > len(before):
            await trio.sleep(0.01)
        return
    more = Counter(open_files(pid)) - Counter(before)
    raise AssertionError(f"files that are not closed: {sorted(more.elements())}")
