"""Disks that fail: one that is full, one that is read-only.  And the log of it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from shim import log
from shim.linux.libc import mount, umount2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MS_RDONLY, _MS_REMOUNT = 1, 32


class Disk:
    """A separate file system, mounted at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.path / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        """Leave room again."""
        (self.path / "filler").unlink()

    def protect(self) -> None:
        """Make it read-only; no process may have a file open for writing."""
        mount("tmpfs", str(self.path), "tmpfs", _MS_REMOUNT | _MS_RDONLY)

    def release(self) -> None:
        """Make it writable again."""
        mount("tmpfs", str(self.path), "tmpfs", _MS_REMOUNT)


@contextmanager
def mounted(path: Path, size: int = 1 << 20) -> Iterator[Disk]:
    """Have a disk of ``size`` bytes at ``path`` for the block."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    path.mkdir()
    mount("tmpfs", str(path), "tmpfs", 0, f"size={size}")
    try:
        yield Disk(path)
    finally:
        umount2(str(path), 2)  # MNT_DETACH


class Said:
    """The log since this was made."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self) -> str:
        """Return the lines that were logged since the last call."""
        try:
            return os.read(self._fd, 1 << 20).decode()
        except BlockingIOError:
            return ""


@contextmanager
def listening() -> Iterator[Said]:
    """Collect the warnings and errors that the block logs."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    log.configure(write, log.WARNING)
    try:
        yield Said(read)
    finally:
        log.configure(2, log.INFO)
        os.close(read)
        os.close(write)
