"""A disk that hangs: an ext4 in a file, frozen, so that each write waits for its thaw."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from shim.linux.libc import umount2
from tests.commandlines import command_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MNT_DETACH = 2
# Seconds after which a disk is thawed in any case.
_LONGEST = 90
# What util-linux and e2fsprogs install, also where a user's PATH lacks it.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class FreezableDisk:
    """A separate file system, mounted at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = False
        self._guard: subprocess.Popen[bytes] | None = None

    def freeze(self) -> None:
        """Let every write wait, and every open that creates."""
        # A test that waits for the disk itself could never thaw it.
        script = f'sleep {_LONGEST}; exec fsfreeze --unfreeze "$0"'
        argv = ["sh", "-c", script, str(self.path)]
        self._guard = subprocess.Popen(argv, env={"PATH": _PATH}, stderr=subprocess.DEVNULL)
        _run("fsfreeze", "--freeze", str(self.path))
        self.frozen = True

    def thaw(self) -> None:
        """Let all of them go on."""
        if self.frozen:
            with suppress(subprocess.CalledProcessError):  # the guard was faster
                _run("fsfreeze", "--unfreeze", str(self.path))
        self.frozen = False
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard = None


def _run(*argv: str) -> None:
    subprocess.run(argv, env={"PATH": _PATH}, check=True, capture_output=True)


@contextmanager
def freezable_disk(image: Path, path: Path, mib: int = 64) -> Iterator[FreezableDisk]:
    """Mount a disk of ``mib`` MiB at ``path``, with its bytes in the file ``image``.

    It is always thawed at the end, since no process that waits for it can be killed.
    """
    with image.open("wb") as file:
        file.truncate(mib << 20)
    path.mkdir(exist_ok=True)
    try:
        _run("mkfs.ext4", "-q", "-F", str(image))
        _run("mount", "-o", "loop", str(image), str(path))
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no file system can be frozen here: {exc}")
    disk = FreezableDisk(path)
    try:
        yield disk
    finally:
        disk.thaw()
        umount2(str(path), _MNT_DETACH)


def file_helpers(root: Path) -> list[int]:
    """Return the processes that copy to and from files below ``root``; no zombie is one."""
    return [
        pid
        for pid, words in command_lines()
        if b"\0".join(words).startswith(b"trio-shim-file\0" + bytes(root))
    ]
