"""Replace the content of a file in one step.

Source: rename(2), which replaces a file atomically; fsync(2), without which the new file
may be empty after a power failure.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from shim.text import doing


def replace_file(
    path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None
) -> None:
    """Write ``content`` to a new file and rename it to ``path``; the directory must exist.

    A reader gets the old content or the new one.  ``owner`` is the uid and the gid of the
    file, by default this process's.  The umask has no effect on ``mode``.

    :raises OSError: it cannot be written; the old file is then unchanged.
    """
    with doing("write", path):  # an error names this file, and not the new one
        _replace(path, content, mode, owner)


def _replace(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    fd, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            if owner is not None:
                os.fchown(fd, *owner)  # before the mode, because it clears set-user-ID
            os.fchmod(fd, mode)
            file.write(content)
            file.flush()
            os.fsync(fd)
        Path(scratch).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(scratch).unlink()
        raise
