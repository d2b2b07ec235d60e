"""The directory of an exec's fifos, among the temporary files.

It is not in the bundle, because that belongs to the manager.
"""

from __future__ import annotations

import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "shimctl-"


@contextmanager
def open_directory() -> Iterator[Path]:
    """Make a directory for the block."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
        yield Path(directory)


def remove_left(stdout: str) -> None:
    """Remove the directory of a client that was killed, if ``stdout`` is the path of its fifo."""
    directory = Path(stdout).parent
    if directory.parent != Path(tempfile.gettempdir()) or not directory.name.startswith(_PREFIX):
        return
    with suppress(OSError):  # its client removes it at this moment
        for path in directory.iterdir():
            if stat.S_ISFIFO(path.lstat().st_mode):
                path.unlink()
        directory.rmdir()
