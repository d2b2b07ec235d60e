"""Makes and removes the mounts of a rootfs, including those that need another process.

An id-mapped mount needs a user namespace, which only a new process can have.
A mount of type ``fuse.NAME`` or ``fuse3.NAME`` is made by mount.fuse or mount.fuse3.

Source: containerd core/mount/mount_linux.go mountWithHelper, mount_idmapped_utils_linux.go;
mount.fuse3(8).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import ShimError, TimedOutError
from shim.linux.idmap import open_namespace
from shim.linux.libc import CLONE_NEWUSER
from shim.linux.mounts import mount_all, resolve, unmount_all
from shim.linux.tree import stopped_tree
from shim.offthread import run_off_thread, wait_unchanged
from shim.runc.output import Output
from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shim.child import Child
    from shim.linux.idmap import IdMap
    from shim.linux.mounts import Mount
    from shim.reaper import Reaper

# Seconds for a helper to mount; a file system that responds takes less than one.
HELPER = 30.0
# Seconds to make the mounts that need no helper, and to unmount all.
MOUNT = 20.0
UNMOUNT = 10.0
# Seconds to wait for a killed helper.
_KILLED = 5.0
_MESSAGE = 1000  # characters of the helper's output in an error


class MountFailedError(ShimError):
    """A mount helper failed.  The text contains the helper's output."""


async def mount_rootfs(
    mounts: Sequence[Mount],
    rootfs: str,
    reaper: Reaper,
    *,
    directory: str | None = None,
    limit: float = HELPER,
) -> None:
    """Make ``mounts`` in order.  After a failure the caller calls :func:`unmount_rootfs`.

    Mounts that wait for a disk fail after ``MOUNT`` seconds, and are undone when the disk
    responds.  ``directory`` is the working directory of helpers, ``limit`` their bound in
    seconds.

    :raises OSError: the kernel rejected a mount.
    :raises ShimError: an option is malformed, this host cannot do it, a helper failed, or
        a limit was exceeded.
    """
    for mount in mounts:
        mount.parsed()  # a malformed mount fails before any mount is made
    # Mounts that were given up are undone later: that must not undo the new ones.
    await wait_unchanged(rootfs, MOUNT)
    for helper, group in itertools.groupby(mounts, _helper_of):
        if not helper:
            await _mount_group(list(group), rootfs, reaper)
            continue
        for mount in group:
            target = await run_off_thread(
                partial(resolve, rootfs, mount.target), f"resolve {mount.target}", limit=MOUNT
            )
            argv = [helper, *_helper_args(mount, target)]
            await _run_helper(argv, reaper, directory, limit)


async def _mount_group(mounts: list[Mount], rootfs: str, reaper: Reaper) -> None:
    with contextlib.ExitStack() as stack:
        namespaces: dict[IdMap, int] = {}
        for idmap in _idmaps(mounts):
            namespaces[idmap] = user_namespace(reaper, idmap)
            stack.callback(os.close, namespaces[idmap])
        # The call may wait for a disk without end, so another thread makes it.
        await run_off_thread(
            partial(mount_all, mounts, rootfs, namespaces),
            f"mount {rootfs}",
            limit=MOUNT,
            late=partial(unmount_all, rootfs),
            keep=list(namespaces.values()),
            changes=rootfs,
        )


async def unmount_rootfs(rootfs: str) -> None:
    """Unmount everything on ``rootfs`` and below, ``UNMOUNT`` seconds at most.

    If a disk does not respond, the unmount continues in the background.

    :raises OSError: the kernel rejected an unmount.
    """
    with trio.CancelScope(shield=True):
        try:
            await run_off_thread(
                partial(unmount_all, rootfs),
                f"unmount {rootfs}",
                limit=UNMOUNT,
                changes=rootfs,
            )
        except TimedOutError as exc:
            log.error("cannot unmount the rootfs in time; the unmount continues", error=exc)


def _idmaps(mounts: Iterable[Mount]) -> set[IdMap]:
    return {idmap for mount in mounts if (idmap := mount.parsed().idmap) is not None}


def user_namespace(reaper: Reaper, idmap: IdMap) -> int:
    """Return the fd of a new user namespace with this mapping.  Takes 0.4 ms.

    :raises InvalidError: the kernel rejects the mapping.
    :raises OSError: this host has no user namespaces, or their limit is reached.
    """
    try:
        with reaper.ended(CLONE_NEWUSER) as pid:
            return open_namespace(pid, idmap)
    except OSError as exc:
        what = f"{exc.strerror}: cannot make the user namespace of an id-mapped mount"
        raise OSError(exc.errno, f"{what}; see user.max_user_namespaces in sysctl(8)") from None


def _helper_of(mount: Mount) -> str:
    """Return the program that makes this mount, or "" if the kernel makes it."""
    kind, dot, _ = mount.type.partition(".")
    return f"mount.{kind}" if dot and kind in {"fuse", "fuse3"} else ""


def _helper_args(mount: Mount, target: str) -> list[str]:
    options = [word for option in mount.options for word in ("-o", option)]
    return [mount.source, target, *options, "-t", mount.type.partition(".")[2]]


async def _run_helper(
    argv: list[str], reaper: Reaper, directory: str | None, limit: float
) -> None:
    shown = f"mount helper {' '.join(argv)}"
    output = Output()
    try:
        child = reaper.spawn(argv, fds={1: output.writer, 2: output.writer}, directory=directory)
        output.started()
        try:
            with trio.fail_after(limit):
                # The file system's process may hold the pipe open: its end is not awaited.
                async with background(output.follow):
                    exit_ = await child.wait()
        except trio.TooSlowError:
            text = f"{shown} did not return within {limit:g} s and was killed"
            raise TimedOutError(text) from None
        finally:
            if child.exit is None:
                await _end(child)
        if exit_.exit_status:
            message = output.text().strip()[-_MESSAGE:] or "no output"
            raise MountFailedError(
                f"{shown} failed with exit status {exit_.exit_status}: {message}"
            )
    finally:
        output.close()


async def _end(child: Child) -> None:
    """Kill a helper and its descendants, one of which may run the file system."""
    with trio.move_on_after(_KILLED, shield=True):
        with stopped_tree(child.pid) as tree:
            tree.kill()
        await child.wait()
