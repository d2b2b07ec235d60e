"""Temporary names for the lower directories of an overlay during mount(2).

The names are replaced in two cases.  The options are longer than mount(2) accepts:
short symbolic links stand for the layers.  Or owners are mapped: the kernel cannot map
an overlay as a whole, so each layer is mounted with its mapping, and the overlay is made
of these mounts.  The overlay keeps its own clones of its layers, so the temporary names
are needed during the call only.

Source: containerd core/mount/mount_linux.go prepareIDMappedOverlay;
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError
from shim.linux import libc
from shim.linux.idmap import mapped_clone
from shim.linux.modes import make_directory, make_private_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Bytes of options one mount(2) takes: a page and its final zero.
MOST_DATA = os.sysconf("SC_PAGESIZE") - 1

_UNESCAPED_COLON = re.compile(r"(?<!\\):")
_DETACH_NOFOLLOW = 2 | 8  # MNT_DETACH | UMOUNT_NOFOLLOW


def layers_of(rootfs: str) -> str:
    """Return the directory of the mapped layers of ``rootfs`` while it is being mounted.

    The name is fixed, so that ``delete`` finds the mounts that a killed shim left there.
    """
    return f"{rootfs.rstrip('/')}.layers"


@contextlib.contextmanager
def short_layers(data: Sequence[str]) -> Iterator[str]:
    """Make a directory of short links to the layers and enter it; yield the short options."""
    directory = Path(make_private_directory("layers-"))
    links: list[Path] = []

    def link(layer: str) -> None:
        links.append(directory / str(len(links)))
        links[-1].symlink_to(layer)

    try:
        short = _renamed(data, link)
        with _working_in(directory):
            yield short
    finally:
        for path in links:
            path.unlink()
        directory.rmdir()


@contextlib.contextmanager
def mapped_layers(data: Sequence[str], namespace: int, directory: str) -> Iterator[str]:
    """Mount every layer with its owners mapped in ``directory``, and enter it.

    Yield the options that name the mapped layers.

    :raises InvalidError: the options have no lower directory.
    :raises UnsupportedError: a layer cannot be mapped.
    """
    if not any(option.startswith("lowerdir=") for option in data):
        raise InvalidError("uidmap and gidmap of an overlay need the option lowerdir")
    make_directory(directory, exist_ok=True)
    points: list[str] = []

    def map_layer(layer: str) -> None:
        point = f"{directory}/{len(points)}"
        make_directory(point, exist_ok=True)
        points.append(point)
        with mapped_clone(layer, namespace, read_only=True) as tree:
            libc.move_mount(tree, point)

    try:
        renamed = _renamed(data, map_layer)
        with _working_in(Path(directory)):
            yield renamed
    finally:
        for point in points:
            detach(point)
        remove_layers(directory)


def remove_layers(directory: str) -> None:
    """Remove a directory of :func:`mapped_layers` after its layers were unmounted.

    :raises OSError: it contains something other than empty directories.
    """
    for entry in list(Path(directory).iterdir()):
        entry.rmdir()
    Path(directory).rmdir()


def _renamed(data: Sequence[str], make: Callable[[str], None]) -> str:
    """Replace each layer in the options by its number, after ``make`` has made that name."""
    options = []
    count = 0
    for option in data:
        key, _, value = option.partition("=")
        if key != "lowerdir":
            options.append(option)
            continue
        names = []
        # An empty layer is part of a "::", which precedes data-only layers.
        for layer in _UNESCAPED_COLON.split(value):
            if layer:
                make(str(Path(re.sub(r"\\(.)", r"\1", layer)).absolute()))
                names.append(str(count))
                count += 1
            else:
                names.append("")
        options.append("lowerdir=" + ":".join(names))
    return ",".join(options)


@contextlib.contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    """Make ``directory`` the working directory of this thread only, for the block."""
    libc.own_directory()
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def detach(target: str) -> None:
    """Unmount ``target`` even if it is in use; do nothing if it is not a mount point."""
    try:
        libc.umount2(target, _DETACH_NOFOLLOW)
    except OSError as exc:
        # It is not a mount point (any more), or its directory does not exist.
        if exc.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
