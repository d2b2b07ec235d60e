"""A container's rootfs: the image's layers below, what it writes above, as one overlay.

What it writes lies in the store, on the disk with the layers: the containers'
working directories are often on a tmpfs, where a container that fills its
rootfs would fill the machine's memory.

Source: Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from shim.api.mount_pb2 import Mount
from shim.errors import NotFoundError, ShimError
from shim.linux.modes import make_directories, make_directory, write_file
from shim.linux.mounts import resolve
from shimctl.images.config import anonymous_volumes
from shimctl.images.store import Store, Use, release

if TYPE_CHECKING:
    from shimctl.images.image import Image

_COPY_TIMEOUT = 600  # s to copy what an image has in a volume


def mounts_for(image: Image, work: Path, *, hostname: str = "") -> list[Mount]:
    """Make what a container of ``image`` writes to; return its rootfs for CreateTaskRequest.

    ``work`` is the container's bundle: it gets a link named ``image``.  The image
    is kept for as long as the link is there; :func:`release` removes all of it.
    What the image has in its volumes is copied, which takes as long as that takes.

    :raises NotFoundError: the image was removed in the meantime.
    :raises ExistsError: the bundle has an image.
    """
    work = work.absolute()
    store = Store(image.store)
    try:
        place = store.add_use(Use(image.digest, image.chain, str(work)))
        upper, scratch = place / "upper", place / "work"
        make_directory(upper)
        make_directory(scratch)
        _write_names(place, hostname)
        try:
            _copy_owner(image.layers[0], upper)
        except FileNotFoundError:
            raise NotFoundError(f"{image.reference} was removed just now; try again") from None
        for number, path in enumerate(anonymous_volumes(image.config)):
            _copy_volume(image.layers[0], path, place / "volumes" / str(number))
    except BaseException:
        release(work)
        raise
    lower = ":".join(map(str, image.layers))
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={scratch}"]
    return [Mount(type="overlay", source="overlay", options=options)]


def _write_names(place: Path, hostname: str) -> None:
    local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    own = f"127.0.1.1\t{hostname}\n" if hostname else ""
    for name, text in (
        ("hostname", f"{hostname}\n"),
        ("hosts", local + own),
        ("resolv.conf", _resolvers()),
    ):
        write_file(place / name, text, 0o644)


def _resolvers() -> str:
    try:
        return Path("/etc/resolv.conf").read_text(errors="replace")
    except OSError:
        return ""


def _copy_volume(rootfs: Path, path: str, volume: Path) -> None:
    """Make a volume with what the image has at its place, owner and mode included."""
    make_directories(volume.parent)
    make_directory(volume, 0o755)
    inside = Path(resolve(str(rootfs), path))
    if not inside.is_dir():
        return
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "--", f"{inside}/.", str(volume)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_COPY_TIMEOUT,
        check=False,
    )
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ShimError(f"cannot copy the image's volume {path}: {message}")
    _copy_owner(inside, volume)


def _copy_owner(source: Path, target: Path) -> None:
    # What is above gives the directory its owner and mode.
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
