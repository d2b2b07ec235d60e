"""Copy files between a container and the host, by the rules of ``docker cp``.

The container may change its files meanwhile: :mod:`shimctl.host.treewalk` reads and
:mod:`shimctl.host.treewriter` writes without following its links outside its root.

Source: Docker's reference of ``docker container cp``: a directory is copied into an
existing directory, ``DIRECTORY/.`` is its content, ``-`` is a tar.
"""

from __future__ import annotations

import os
import stat
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from shim.errors import InvalidError, NotFoundError, ShimError, WrongStateError
from shim.text import printable
from shimctl.host import ownership
from shimctl.host.inroot import open_inside
from shimctl.host.treewalk import walk
from shimctl.host.treewriter import Writer, copy_data, set_attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shimctl.host.containerroot import ContainerRoot
    from shimctl.host.ownership import Owner

_PATH = os.O_PATH | os.O_CLOEXEC
# The errors of reading a damaged archive.
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Side:
    """The container or, without a ``root``, this host; ``owner`` is that of the copies."""

    root: ContainerRoot | None
    owner: Owner

    def open(self, path: str, *, follow: bool) -> int:
        """Return an O_PATH fd of ``path``; with ``follow`` of the target if it is a link.

        :raises OSError: it does not exist.
        """
        if self.root is None:
            return os.open(path, _PATH | (0 if follow else os.O_NOFOLLOW))
        name = os.path.basename(path)  # noqa: PTH119 - pathlib drops a last slash
        if follow or name in ("", ".", ".."):
            return open_inside(self.root.fd, path, _PATH)
        parent = open_inside(self.root.fd, os.path.dirname(path), _PATH | os.O_DIRECTORY)  # noqa: PTH120 - the same
        try:
            return os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)

    def mode(self, path: str, *, follow: bool = True) -> int | None:
        """Return the mode of ``path``, None if it does not exist."""
        try:
            fd = self.open(path, follow=follow)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)

    @contextmanager
    def writer(self, directory: str) -> Iterator[Writer]:
        """Return the writer of entries into ``directory``, for the block."""
        if self.root is not None:
            with Writer(self.root.fd, directory, self.owner, links=True, trusted=True) as writer:
                yield writer
            return
        trusted = self.owner is not ownership.caller
        fd = os.open(directory or ".", _PATH | os.O_DIRECTORY)
        try:
            with Writer(fd, "", self.owner, links=False, trusted=trusted) as writer:
                yield writer
        finally:
            os.close(fd)


def sides(root: ContainerRoot, *, archive: bool) -> tuple[Side, Side]:
    """Return the sides for a copy from the container and for one to the container.

    The copies belong to the calling user and to the container's root; with ``archive``
    they keep the container's numbers of their owners.
    """
    if archive:
        return Side(None, root.ids.shown), Side(root, root.ids.stored)
    return Side(None, ownership.caller), Side(root, root.ids.root)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"there is no {printable(path)}") from None
    except OSError as exc:
        raise ShimError(f"cannot copy {printable(path)}: {exc.strerror}") from None


@contextmanager
def _source(side: Side, path: str, *, follow: bool) -> Iterator[tuple[int, bool, str]]:
    """Open the source; return its fd, whether only its content is copied, and its name."""
    inside = path.endswith("/.") or path in (".", "/")
    directory = inside or path.endswith("/")
    with _reading(path):
        fd = side.open(path, follow=follow or directory)
    try:
        if directory and not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidError(f"{printable(path)} is not a directory; leave out the last slash")
        yield fd, inside, os.path.basename(path.rstrip("/"))  # noqa: PTH119 - of either side
    finally:
        os.close(fd)


def copy(
    source: Side, path: str, target: Side, destination: str, *, follow: bool = False
) -> list[str]:
    """Copy ``path`` to ``destination``; return the devices that were left out.

    With ``follow`` a link ``path`` is followed; else the link itself is copied.

    :raises NotFoundError: the source, or the directory of the destination, does not exist.
    :raises InvalidError, WrongStateError: the destination does not fit the source.
    :raises ShimError: a file cannot be read or written.
    """
    pseudo = source.root.pseudo if source.root else frozenset()
    with _source(source, path, follow=follow) as (fd, inside, name):
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        found = target.mode(destination)
        if found is not None and stat.S_ISDIR(found):
            directory, first = destination, "" if inside else name
            if first in (".", ".."):
                first = ""
        elif found is None and is_directory and target.mode(destination, follow=False) is None:
            directory, first = _split(destination.rstrip("/"))
        elif is_directory:
            raise WrongStateError(
                f"cannot copy a directory to {printable(destination)}, which is a file"
            )
        elif destination.endswith(("/", "/.")):
            raise NotFoundError(f"there is no directory {printable(destination)}; create it first")
        else:
            if found is not None and _is_link(target, destination):
                with _reading(destination):
                    _overwrite(fd, target, destination)
                return []
            directory, first = _split(destination)
        if target.mode(directory or ".") is None:
            raise NotFoundError(f"there is no directory {printable(directory)}; create it first")
        with _reading(path), target.writer(directory) as writer:
            for info, data in walk(fd, first, pseudo):
                _translate(info, source)
                writer.add(info, data)
        return writer.skipped


def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rpartition("/")
    return (directory or "/") if "/" in path else directory, name


def _is_link(side: Side, path: str) -> bool:
    mode = side.mode(path, follow=False)
    return mode is not None and stat.S_ISLNK(mode)


def _overwrite(fd: int, target: Side, destination: str) -> None:
    """Write the file ``fd`` into the existing file that the link ``destination`` leads to."""
    opened = target.open(destination, follow=True)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise WrongStateError(f"{printable(destination)} leads to a file of another type")
        out = os.open(f"/proc/self/fd/{opened}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    finally:
        os.close(opened)
    try:
        for info, data in walk(fd, "file"):
            if data is None:
                raise InvalidError(f"only a file can be copied to {printable(destination)}")
            copy_data(data, out)
            set_attributes(out, info, target.owner, trusted=target.root is not None)
    finally:
        os.close(out)


def _translate(info: tarfile.TarInfo, source: Side) -> None:
    """Change the owner of an entry of a container to the container's own numbers."""
    if source.root is not None:
        info.uid, info.gid = source.root.ids.shown(info.uid, info.gid)


def to_tar(source: Side, path: str, out: BinaryIO, *, follow: bool = False) -> None:
    """Write ``path`` as a tar to ``out``; owners are the container's numbers.

    :raises ShimError: as :func:`copy` does.
    """
    pseudo = source.root.pseudo if source.root else frozenset()
    with (
        _source(source, path, follow=follow) as (fd, inside, name),
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        _reading(path),
    ):
        for info, data in walk(fd, "." if inside or name in ("", ".", "..") else name, pseudo):
            _translate(info, source)
            archive.addfile(info, data)


def from_tar(archive: BinaryIO, target: Side, destination: str) -> None:
    """Extract a tar, compressed or not, into the directory ``destination``.

    :raises NotFoundError: there is no such directory.
    :raises InvalidError: the archive is damaged, or has a name that leads out of it.
    :raises ShimError: as :func:`copy` does.
    """
    mode = target.mode(destination)
    if mode is None or not stat.S_ISDIR(mode):
        raise NotFoundError(f"there is no directory {printable(destination)}; create it first")
    try:
        with (
            tarfile.open(fileobj=archive, mode="r|*") as entries,
            _reading(destination),
            target.writer(destination) as writer,
        ):
            for info in entries:
                writer.add(info, _data(entries, info))
                entries.members = []  # type: ignore[attr-defined]  # else it keeps all entries
    except _DAMAGED as exc:
        raise InvalidError(f"stdin is not a complete tar: {exc}") from None


def _data(entries: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO | None:
    return entries.extractfile(info) if info.isreg() else None  # type: ignore[return-value]
