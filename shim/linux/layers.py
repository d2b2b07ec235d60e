"""The lower directories of an overlay, under other names for the call of mount(2).

Names are replaced when all of them together are longer than mount(2) takes, and
when owners are to be mapped: overlay cannot be mapped as a whole, so that each
layer is mounted with its mapping, and the overlay made of these mounts.  Overlay
keeps clones of its layers: the other names are needed for the call alone.

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
from shim.linux.modes import make_directory
from shim.linux.sockets import make_private_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Bytes of options one mount(2) takes: a page and its final zero.
MOST_DATA = os.sysconf("SC_PAGESIZE") - 1

_UNESCAPED_COLON = re.compile(r"(?<!\\):")
_DETACH_NOFOLLOW = 2 | 8  # MNT_DETACH | UMOUNT_NOFOLLOW


def layers_of(rootfs: str) -> str:
    """Return the directory of the mapped layers of ``rootfs`` while it is being mounted.

    It has a fixed name, so that ``delete`` finds what a killed shim left there.
    """
    return f"{rootfs.rstrip('/')}.layers"


@contextlib.contextmanager
def short_layers(data: Sequence[str]) -> Iterator[str]:
    """Stand in a directory of short links to the layers; return the short options."""
    directory = Path(make_private_directory("layers-"))
    links: list[Path] = []

    def link(layer: str) -> None:
        links.append(directory / str(len(links)))
        links[-1].symlink_to(layer)

    try:
        short = _renamed(data, link)
        with _standing_in(directory):
            yield short
    finally:
        for path in links:
            path.unlink()
        directory.rmdir()


@contextlib.contextmanager
def mapped_layers(data: Sequence[str], namespace: int, directory: str) -> Iterator[str]:
    """Mount every layer with its owners mapped in ``directory``; stand there.

    Return the options that name the mapped layers.

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
        with _standing_in(Path(directory)):
            yield renamed
    finally:
        for point in points:
            detach(point)
        remove_layers(directory)


def remove_layers(directory: str) -> None:
    """Remove a directory of :func:`mapped_layers` in which nothing is mounted any more.

    :raises OSError: it has other things in it than directories that are empty.
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
        # An empty layer is half of a "::", which sets data-only layers apart.
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
def _standing_in(directory: Path) -> Iterator[None]:
    """Have ``directory`` as the working directory of this thread, and of no other."""
    libc.own_directory()
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def detach(target: str) -> None:
    """Unmount ``target``, in use or not.  That it is no mount point is no error."""
    try:
        libc.umount2(target, _DETACH_NOFOLLOW)
    except OSError as exc:
        # It is no mount point (any more), or its directory is gone.
        if exc.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
