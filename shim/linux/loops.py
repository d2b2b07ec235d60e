"""Loop devices: an image file as a block device while it is mounted.

The kernel detaches the device from its file at the last close (autoclear).  A mount
keeps the device open, so no cleanup is needed after an unmount or a shim's death.

Source: containerd core/mount/losetup_linux.go; loop(4); linux/loop.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from typing import TYPE_CHECKING

from shim.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROL = "/dev/loop-control"

# Source: linux/loop.h
_LOOP_SET_FD = 0x4C00
_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_SET_DIRECT_IO = 0x4C08
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16
# struct loop_info64: five words, four ints of which the last is the flags, two names,
# a key and two more words.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: the file's fd, the block size (0: the kernel's choice), info, reserved.
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
_NAME = 63  # bytes of the file's path that the device stores

# Attempts: another process can take a free device before this one attaches to it.
_TRIES = 100


@contextlib.contextmanager
def attached(image: str, *, read_only: bool, direct_io: bool = False) -> Iterator[str]:
    """Attach ``image`` to a free loop device and yield the device's path.

    The kernel detaches the device at the end of the block, or when a mount made from
    it in the block is unmounted.

    :raises OSError: the image or the device cannot be opened, or attaching fails.
    :raises UnavailableError: other processes took every free device that was tried.
    """
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    file = os.open(image, mode)
    try:
        device, path = _attach(file, image, mode, _flags(read_only, direct_io))
    finally:
        os.close(file)
    try:
        yield path
    finally:
        os.close(device)


def _flags(read_only: bool, direct_io: bool) -> int:
    return _AUTOCLEAR | (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)


def _attach(file: int, image: str, mode: int, flags: int) -> tuple[int, str]:
    info = _INFO.pack(*[0] * 8, flags, os.fsencode(image)[:_NAME], b"", b"", 0, 0)
    for attempt in range(_TRIES):
        path = _free_device()
        device = os.open(path, mode)
        try:
            _configure(device, file, info, flags)
        except OSError as exc:
            os.close(device)
            if exc.errno != errno.EBUSY:
                raise OSError(
                    exc.errno, f"{exc.strerror}: cannot attach {image} to", path
                ) from None
            # Competing processes find the same device: a random pause separates them.
            time.sleep(os.urandom(1)[0] / 255 * attempt / 1000)
        else:
            return device, path
    raise UnavailableError(
        f"cannot attach {image} to a loop device: other processes took {_TRIES} free ones; "
        "try again"
    )


def _free_device() -> str:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
    finally:
        os.close(control)


def _configure(device: int, file: int, info: bytes, flags: int) -> None:
    try:
        fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(file, 0, info))
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # Linux before 5.8 has no LOOP_CONFIGURE.
        _configure_in_steps(device, file, info, flags)


def _configure_in_steps(device: int, file: int, info: bytes, flags: int) -> None:
    fcntl.ioctl(device, _LOOP_SET_FD, file)
    try:
        fcntl.ioctl(device, _LOOP_SET_STATUS64, info)
        if flags & _DIRECT_IO:
            fcntl.ioctl(device, _LOOP_SET_DIRECT_IO, 1)
    except OSError:
        fcntl.ioctl(device, _LOOP_CLR_FD, 0)
        raise
