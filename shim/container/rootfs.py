"""The mounts of a rootfs, those included that need another process.

An id-mapped mount needs a user namespace, and the namespace a process that makes it.
A mount of type ``fuse.NAME`` or ``fuse3.NAME`` is made by mount.fuse or mount.fuse3.

Source: containerd core/mount/mount_linux.go mountWithHelper, mount_idmapped_utils_linux.go;
mount.fuse3(8).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import NotFoundError, ShimError, TimedOutError
from shim.linux.idmap import open_namespace
from shim.linux.libc import CLONE_NEWUSER
from shim.linux.mounts import mount_all, resolve, unmount_all
from shim.offthread import run_off_thread
from shim.runc.output import Output
from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shim.linux.idmap import IdMap
    from shim.linux.mounts import Mount
    from shim.reaper import Child, Reaper

# Seconds a helper may take to mount; a file system that answers does it within one.
HELPER = 30.0
# Seconds to make the mounts that the kernel makes, and to undo all.
MOUNT = 20.0
UNMOUNT = 10.0
# Seconds between SIGKILL and giving it up.
_KILLED = 5.0
_MESSAGE = 1000  # characters of the helper's output in an error


class MountFailedError(ShimError):
    """A mount helper failed.  The text has the helper's own words."""


async def mount_rootfs(
    mounts: Sequence[Mount],
    rootfs: str,
    reaper: Reaper,
    *,
    directory: str | None = None,
    limit: float = HELPER,
) -> None:
    """Make ``mounts`` in order.  After a failure some may be left, for unmount_rootfs.

    Mounts that a disk holds are given up after ``MOUNT``, and undone when it responds.

    ``directory`` is the working directory of helpers, ``limit`` their bound in seconds.

    :raises OSError: the kernel refused one.
    :raises ShimError: an option is malformed, this host cannot do it, or a helper failed.
    """
    for mount in mounts:
        mount.parsed()  # no mount is made if a later one can only be refused
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
        # A disk may hold a mount for ever.
        await run_off_thread(
            partial(mount_all, mounts, rootfs, namespaces),
            f"mount {rootfs}",
            limit=MOUNT,
            late=partial(unmount_all, rootfs),
            keep=list(namespaces.values()),
        )


async def unmount_rootfs(rootfs: str) -> None:
    """Unmount what is on ``rootfs`` and below; what a disk holds ends when it responds.

    :raises OSError: the kernel refused.
    """
    with trio.CancelScope(shield=True):
        try:
            await run_off_thread(partial(unmount_all, rootfs), f"unmount {rootfs}", limit=UNMOUNT)
        except TimedOutError as exc:
            log.error("the rootfs is unmounted later", error=exc)


def _idmaps(mounts: Iterable[Mount]) -> set[IdMap]:
    return {idmap for mount in mounts if (idmap := mount.parsed().idmap) is not None}


def user_namespace(reaper: Reaper, idmap: IdMap) -> int:
    """Return the fd of a new user namespace with this mapping.  It takes 0.4 ms.

    :raises InvalidError: the kernel does not take the mapping.
    :raises OSError: this host has no user namespaces, or no room for one.
    """
    try:
        with reaper.ended(CLONE_NEWUSER) as pid:
            return open_namespace(pid, idmap)
    except OSError as exc:
        what = f"{exc.strerror}: cannot make the user namespace of an id-mapped mount"
        raise OSError(exc.errno, f"{what}; see user.max_user_namespaces in sysctl(8)") from None


def _helper_of(mount: Mount) -> str:
    """Return the program that makes this mount; it is empty where the kernel does."""
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
                # The file system it leaves behind may keep our pipe: its end is not awaited.
                async with background(output.follow):
                    exit_ = await child.wait()
        except trio.TooSlowError:
            text = f"{shown} did not return within {limit:g} s and was killed"
            raise TimedOutError(text) from None
        finally:
            if child.exit is None:
                await _end(child, reaper)
        if exit_.exit_status:
            said = output.text().strip()[-_MESSAGE:] or "it said nothing"
            raise MountFailedError(f"{shown} failed with exit status {exit_.exit_status}: {said}")
    finally:
        output.close()


async def _end(child: Child, reaper: Reaper) -> None:
    """Kill a helper with its children: it runs the file system in one of them."""
    with trio.move_on_after(_KILLED, shield=True):
        family = _descendants(child.pid)
        with contextlib.suppress(NotFoundError):
            child.signal(9)
        await child.wait()
        for pid in family:
            reaper.kill_orphan(pid)


def _descendants(pid: int) -> list[int]:
    """Return the children of ``pid`` and theirs; none on a kernel that does not list them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for word in (task / "children").read_bytes().split():
                found += [int(word), *_descendants(int(word))]
    return found
