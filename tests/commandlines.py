"""The command lines of all processes, some of which end during the search."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def command_lines() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the pid and the words of each process but zombies and the kernel's threads."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended
                line = (entry / "cmdline").read_bytes()
                if line:
                    yield int(entry.name), line.removesuffix(b"\0").split(b"\0")
