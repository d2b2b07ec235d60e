"""Makes a container's rootfs: an overlay of the image's layers and a writable directory.

The writable directory is in the store, on the same disk as the layers.  The
containers' working directories are often on a tmpfs; there, a container that fills
its rootfs would fill the machine's memory.

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

_COPY_TIMEOUT = 600  # s to copy the image's files into one volume


def mounts_for(image: Image, work: Path, *, hostname: str = "") -> list[Mount]:
    """Make the writable files of a container; return the mounts for CreateTaskRequest.rootfs.

    ``work`` is the container's bundle.  It gets a link named ``image`` to these files.
    The image cannot be removed while the link exists; :func:`release` removes the
    link and the files.  Each anonymous volume gets a copy of the image's files at its
    path, which may take up to 600 s a volume.

    :raises NotFoundError: the image was removed after it was prepared.
    :raises ExistsError: the bundle has such a link already.
    :raises ShimError: the files of a volume could not be copied.
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
    """Make the directory ``volume``; copy the image's files at ``path``, owner and mode too."""
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
        raise ShimError(f"cannot copy the image's files into the volume {path}: {message}")
    _copy_owner(inside, volume)


def _copy_owner(source: Path, target: Path) -> None:
    # A directory of an overlay has the owner and the mode of the upper one.
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
