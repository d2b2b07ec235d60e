"""Mounts as containerd describes them: options are text, and a rootfs is a list of mounts.

All functions block, spawn no process, and can be called in any thread.
Mounts whose type is ``fuse.NAME`` need a helper: container/rootfs.py.

Source: containerd core/mount/mount_linux.go (two-step bind), mount(2).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError
from shim.linux import libc, mountinfo
from shim.linux.idmap import mapped_clone
from shim.linux.layers import (
    MOST_DATA,
    detach,
    layers_of,
    mapped_layers,
    remove_layers,
    short_layers,
)
from shim.linux.loops import attached
from shim.linux.mountinfo import mounts_below
from shim.linux.mountoptions import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_RELATIME,
    MS_REMOUNT,
    Options,
    parse_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shim.linux.idmap import IdMap

# Flags of a mount, not of its file system: the kernel ignores them in the call that makes
# a bind mount, and applies them in a remount.
_PER_MOUNT = (
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_NOSYMFOLLOW
)
# statvfs(3) flag: the mount(2) flag that must be repeated where it is locked.
_LOCKED = {1: MS_RDONLY, 2: MS_NOSUID, 4: MS_NODEV, 8: MS_NOEXEC, 1024: MS_NOATIME,
           2048: MS_NODIRATIME, 4096: MS_RELATIME}  # fmt: skip

# Source: linux/namei.h MAXSYMLINKS.
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a rootfs.  ``target`` is inside the rootfs; empty is the rootfs itself."""

    type: str
    source: str
    target: str = ""
    options: Sequence[str] = ()

    def parsed(self) -> Options:
        """:raises ShimError: as :func:`shim.linux.mountoptions.parse_options`."""
        for text in (self.type, self.source, self.target, *self.options):
            if "\0" in text:
                raise InvalidError(
                    f"the {self.type!r} mount of the rootfs has a NUL byte in {text!r}"
                )
        return parse_options(self.options)


def mount_all(
    mounts: Sequence[Mount], rootfs: str, namespaces: Mapping[IdMap, int] | None = None
) -> None:
    """Make ``mounts`` in order, all or none.

    ``namespaces`` maps each mapping of ids in the options to the fd of a user namespace.

    :raises OSError: a mount failed; the text names it.
    :raises ShimError: an option is malformed, or this host does not support it.
    """
    done: list[str] = []
    try:
        for mount in mounts:
            options = mount.parsed()
            target = resolve(rootfs, mount.target)
            namespace = (namespaces or {})[options.idmap] if options.idmap else None
            if _mount(mount, target, options, namespace, layers_of(rootfs)):
                done.append(target)
    except BaseException:
        for target in reversed(done):
            detach(target)
        raise


def _mount(
    mount: Mount, target: str, options: Options, namespace: int | None, layers: str
) -> bool:
    """Make one mount; return whether it added one (a remount does not)."""
    remount = bool(options.flags & MS_REMOUNT)
    made = False
    try:
        with _source_and_data(mount, options, namespace, layers) as (source, data):
            libc.mount(source, target, mount.type, options.flags, data)
        made = not remount
        if options.flags & MS_BIND and options.flags & _PER_MOUNT and not remount:
            _remount(target, options.flags | MS_REMOUNT)
        if namespace is not None and mount.type != "overlay":
            with mapped_clone(target, namespace, recursive=True) as tree:
                detach(target)
                made = False
                libc.move_mount(tree, target)
                made = True
        if options.propagation:
            libc.mount("", target, "", options.propagation)
    except BaseException as exc:
        if made:
            detach(target)
        if not isinstance(exc, OSError):
            raise
        what = f"{exc.strerror}: cannot mount {mount.type or 'bind'} {mount.source}"
        raise OSError(exc.errno, what, target) from None
    return made


@contextlib.contextmanager
def _source_and_data(
    mount: Mount, options: Options, namespace: int | None, layers: str
) -> Iterator[tuple[str, str]]:
    """Make loop devices and layers for the call of mount(2); yield its source and options."""
    remount = bool(options.flags & MS_REMOUNT)
    if remount and namespace is not None:
        raise InvalidError("a remount cannot map ids; leave out uidmap and gidmap")
    with contextlib.ExitStack() as stack:
        source, data = mount.source, ",".join(options.data)
        if options.loop and not remount:
            read_only = bool(options.flags & MS_RDONLY)
            device = attached(source, read_only=read_only, direct_io=options.direct_io)
            source = stack.enter_context(device)
        if mount.type == "overlay" and namespace is not None:
            data = stack.enter_context(mapped_layers(options.data, namespace, layers))
        elif len(os.fsencode(data)) > MOST_DATA:
            data = stack.enter_context(short_layers(options.data))
        if len(os.fsencode(data)) > MOST_DATA:
            raise InvalidError(f"the options of {mount.type} are longer than {MOST_DATA} bytes")
        yield source, data


def _remount(target: str, flags: int) -> None:
    try:
        libc.mount("", target, "", flags)
    except PermissionError:
        # In a user namespace the mount's locked flags must be kept.
        now = os.statvfs(target).f_flag
        kept = sum(flag for bit, flag in _LOCKED.items() if now & bit and not flags & flag)
        libc.mount("", target, "", flags | kept)


def resolve(root: str, path: str) -> str:
    """Return the path that a process with the root directory ``root`` reaches by ``path``.

    :raises InvalidError: its symbolic links form a loop, or it holds a NUL byte.
    """
    if "\0" in path:
        raise InvalidError(f"{path!r} holds a NUL byte; no path can have one")
    root = os.path.realpath(root)
    current, links = root, 0
    parts = path.split("/")[::-1]
    while parts:
        part = parts.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            current = posixpath.dirname(current) if current != root else root
            continue
        step = posixpath.join(current, part)
        try:
            link = str(Path(step).readlink())
        except OSError:
            current = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InvalidError(f"{path}: too many symbolic links")
        if link.startswith("/"):
            current = root
        parts += link.split("/")[::-1]
    return current


def unmount_all(rootfs: str) -> None:
    """Unmount every mount on ``rootfs`` and below, and layers that a killed shim left.

    No mount there is not an error.

    :raises OSError: an unmount failed.
    """
    _unmount_below(rootfs)
    layers = layers_of(rootfs)
    if os.path.lexists(layers):
        _unmount_below(layers)
        remove_layers(layers)


def is_mounted(rootfs: str) -> bool:
    """Return whether :func:`unmount_all` would unmount something."""
    return bool(mounts_below(rootfs)) or os.path.lexists(layers_of(rootfs))


def _unmount_below(path: str) -> None:
    failure: OSError | None = None
    # A second round is needed only if another process mounts at the same time.
    for _ in range(3):
        table = mountinfo.read()
        points = mounts_below(path, [mount.point for mount in table])
        if not points:
            return
        served = {mount.point for mount in table if mount.fstype.startswith("fuse")}
        failure = None
        for point in _from_below(points, served.intersection(points)):
            try:
                detach(point)
            except OSError as exc:
                failure = exc
    if failure is not None:
        raise failure


def _from_below(points: list[str], served: set[str]) -> list[str]:
    """Return ``points`` in the order to unmount them, the deepest first.

    ``served`` are file systems that a process serves (FUSE).  Mounts inside one of them
    come last: a path to them goes through the process, which may hang, and unmounting
    the served file system also removes the mounts inside it.
    """

    def key(point: str) -> tuple[bool, int]:
        inside = any(point.startswith(f"{above}/") for above in served)
        return inside, -point.count("/")

    return sorted(points, key=key)
