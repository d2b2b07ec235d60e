"""Removes the directory that a killed create command has left in the runtime's state directory.

A create that ends before it has written its state leaves ``ROOT/ID``, and then every further
create of this id fails.  The runtime's ``delete --force`` removes that directory, but not if
something is mounted below it, and reports success.  runc before 1.1.15 mounts its own binary on
``ROOT/ID/runc.XXXXXX`` for a moment, in each create and exec; later versions use a memfd, a
file without a name or a mount without a path.

Source: runc 1.1 libcontainer/nsenter/cloned_binary.c try_bindfd() and delete.go; runc 1.2
libcontainer/dmz and runc 1.3 libcontainer/exeseal, CloneSelfExe().
"""

from __future__ import annotations

import os
from contextlib import suppress

from shim.errors import WrongStateError
from shim.linux.layers import detach
from shim.linux.removal import mount_of, remove_tree
from shim.runc.orphans import is_running

# The files that have the state: runc's and youki's, and crun's.
_STATES = {"state.json", "status"}
_MOST = 16  # mounts on one name
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def remove_unfinished(root: str, id_: str) -> None:
    """Remove ``root/id_`` with the mounts in it, if it holds no state.

    Do nothing if there is no such directory.

    :raises WrongStateError: a command of the runtime for this container runs, or the
        directory is a mount point.
    :raises OSError: something in it cannot be unmounted or removed.
    """
    if not root:
        return
    path = f"{root}/{id_}"
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError:
        return
    try:
        names = os.listdir(fd)  # noqa: PTH208 - an fd
        if not _STATES.isdisjoint(names):
            return
        if await is_running(root, id_):
            raise WrongStateError(f"a runtime command for {path} runs; end it, then try again")
        if mount_of(fd) != _mount_of_name(fd, ".."):
            raise WrongStateError(f"{path} is a mount point; umount it, then try again")
        for name in names:
            _unmount(fd, name)
            _remove(fd, name)
        # Another process may have removed it, and a new create have made it again.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                os.rmdir(path)  # noqa: PTH106 - a plain string
    finally:
        os.close(fd)


def _unmount(directory: int, name: str) -> None:
    """Remove all mounts on ``name`` in ``directory``."""
    for _ in range(_MOST):
        if _mount_of_name(directory, name) == mount_of(directory):
            return
        detach(f"/proc/thread-self/fd/{directory}/{name}")


def _mount_of_name(directory: int, name: str) -> int:
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return mount_of(directory)
    try:
        return mount_of(fd)
    finally:
        os.close(fd)


def _remove(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        remove_tree(f"/proc/thread-self/fd/{directory}/{name}")
