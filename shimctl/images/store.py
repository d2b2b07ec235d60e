"""The store of unpacked images, each set of layers once, and the containers that use them.

    images/HEX.json      the record of an image, by digest
    rootfs/HEX           its layers unpacked one upon the other, by their chain id
    containers/NAME      the files that one container writes
    partial/NAME         an image that is being unpacked; its writers hold a lock
    locks/NAME           a lock, held while an image is prepared or removed

A directory gets its final name when it is complete and on the disk.  A directory in
``partial`` without a held lock was left by a crash and is removed.

Source: flock(2), whose locks end with the last process that has them open.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import ExistsError, InvalidError, TimedOutError, WrongStateError
from shim.linux.modes import make_directory, make_trusted, write_file
from shim.linux.removal import check_unmounted, remove_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_DEFAULT = "/var/lib/trio-shim/images"
_LOCK_TIMEOUT = 3600  # s for another process that prepares the same image
_POLL = 0.05  # s; a lock has no event
_STALE = 3600  # s after which a directory without use.json is removed
LINK = "image"  # in a container's working directory: the link to its files
_USE = "use.json"


@dataclass(frozen=True, slots=True)
class Record:
    """An image in the store.  ``size`` is the bytes of disk of its unpacked layers."""

    digest: str
    chain: str
    platform: str
    size: int
    created: float  # s since the epoch: when it was unpacked
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """A container that uses an image's layers in its rootfs."""

    digest: str
    chain: str
    work: str  # the container's working directory


@dataclass(frozen=True, slots=True)
class Partial:
    """A scratch directory and the fd of its lock; both exist until the block ends."""

    path: Path
    lock: int


class Store:
    """The images below one directory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or default_path()).absolute()
        if set(str(self.path)) & set(":,\\\n"):
            # These characters end a path in the options of overlay.
            raise InvalidError(
                f"cannot use {self.path} for images: the path contains a colon, comma or backslash"
            )

    def make(self) -> None:
        """Make the directories that are missing.  Only root may read them."""
        make_trusted(str(self.path))
        for name in ("images", "rootfs", "containers", "partial", "locks"):
            make_directory(self.path / name, exist_ok=True)

    def rootfs(self, chain: str) -> Path:
        return self.path / "rootfs" / _hex(chain)

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """Hold the lock ``name``, a digest or a word, for the block.

        :raises TimedOutError: another process held it for an hour.
        """
        path = self.path / "locks" / _hex(name)
        import trio  # here: a release does without it

        deadline = trio.current_time() + _LOCK_TIMEOUT
        while (fd := _lock(path)) is None:
            if trio.current_time() > deadline:
                raise TimedOutError(f"cannot lock {path}: another process has held it for an hour")
            await trio.sleep(_POLL)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    @contextmanager
    def partial(self) -> Iterator[Partial]:
        """Create a scratch directory for the block; remove it and its content at the end."""
        while True:
            path = self.path / "partial" / secrets.token_hex(8)
            lock = path.with_suffix(".lock")
            fd = _lock(lock)
            if fd is not None:
                break
        try:
            make_directory(path)
            yield Partial(path, fd)
        finally:
            _remove(path)
            if not path.exists():  # else a cancelled tool still writes
                lock.unlink(missing_ok=True)
            os.close(fd)

    def sweep(self) -> None:
        """Remove the leftovers of crashes: partial images, files of deleted containers."""
        for lock in (self.path / "partial").glob("*.lock"):
            fd = _lock(lock)
            if fd is None:
                continue
            _remove(lock.with_suffix(""))
            if not lock.with_suffix("").exists():
                lock.unlink(missing_ok=True)
            os.close(fd)
        for place in (self.path / "containers").glob("*"):
            use = _read_use(place)
            if (use is None and _age(place) > _STALE) or (use and not _is_alive(use, place)):
                _remove(place)

    def records(self) -> list[Record]:
        """Return the images, oldest first."""
        found = []
        for path in (self.path / "images").glob("*.json"):
            with suppress(OSError, ValueError, TypeError):
                fields = json.loads(path.read_bytes())
                found.append(Record(**fields | {"references": tuple(fields["references"])}))
        return sorted(found, key=lambda record: (record.created, record.digest))

    async def remember(self, record: Record, reference: str) -> None:
        """Write ``record`` and give it ``reference``, which other records lose."""
        async with self.locked("records"):
            kept = list(record.references)
            for old in self.records():
                if old.digest == record.digest:
                    kept = [*old.references]
                elif reference in old.references:
                    rest = tuple(name for name in old.references if name != reference)
                    self._write(_with_references(old, rest))
            if reference not in kept:
                kept.append(reference)
            self._write(_with_references(record, tuple(kept)))

    def uses(self) -> list[Use]:
        """Return the containers that use an image."""
        places = sorted((self.path / "containers").glob("*"))
        uses = [(_read_use(place), place) for place in places]
        return [use for use, place in uses if use is not None and _is_alive(use, place)]

    def add_use(self, use: Use) -> Path:
        """Create the directory of a container's own files and link it from its working directory.

        :raises ExistsError: the container has such a directory.
        """
        place = self.path / "containers" / secrets.token_hex(8)
        # Create the link first: without it the directory counts as stale.
        try:
            (Path(use.work) / LINK).symlink_to(place)
        except FileExistsError:
            raise ExistsError(f"{use.work} has an image already") from None
        make_directory(place)
        new = place / "use.new"
        write_file(new, json.dumps(asdict(use)))
        new.rename(place / _USE)
        return place

    async def remove(self, record: Record) -> None:
        """Remove an image, and its layers unless another image has the same.

        :raises WrongStateError: a container uses it.
        """
        async with self.locked(record.chain):
            if used := [use.work for use in self.uses() if use.digest == record.digest]:
                names = ", ".join(Path(work).name for work in used)
                raise WrongStateError(f"{record.digest} is used by {names}; delete that first")
            async with self.locked("records"):
                self._record_path(record.digest).unlink(missing_ok=True)
                others = any(other.chain == record.chain for other in self.records())
            if not others:
                await self._remove_layers(record.chain)

    async def remove_strays(self) -> None:
        """Remove layers without an image: a crash came before the record was written."""
        for rootfs in (self.path / "rootfs").glob("*"):
            async with self.locked(rootfs.name):
                if all(_hex(record.chain) != rootfs.name for record in self.records()):
                    await self._remove_layers(rootfs.name)

    async def _remove_layers(self, chain: str) -> None:
        with self.partial() as trash:
            rootfs, away = self.rootfs(chain), trash.path / "rootfs"
            try:
                rootfs.rename(away)
            except FileNotFoundError:
                return
            # A container may have begun to use the layers meanwhile.
            if any(_hex(use.chain) == _hex(chain) for use in self.uses()):
                away.rename(rootfs)
                return
            import trio

            await trio.to_thread.run_sync(_remove, away)

    def _record_path(self, digest: str) -> Path:
        return self.path / "images" / f"{_hex(digest)}.json"

    def _write(self, record: Record) -> None:
        path = self._record_path(record.digest)
        new = path.with_suffix(".new")
        write_file(new, json.dumps(asdict(record)))
        new.rename(path)


def default_path() -> Path:
    """Return the path of the store: SHIMCTL_IMAGES, or /var/lib/trio-shim/images."""
    return Path(os.environ.get("SHIMCTL_IMAGES") or _DEFAULT)


def release(work: Path) -> None:
    """Remove the files that the container of this working directory wrote.

    A container without an image is left alone.

    :raises WrongStateError: a file system is mounted in the working directory, such as
        the rootfs, or in the container's files.
    """
    work = work.absolute()
    check_unmounted(work)
    link = work / LINK
    with suppress(OSError):
        place = link.readlink()
        # Remove only a directory that add_use created: the link may lead elsewhere.
        use = _read_use(place)
        if use is not None and Path(use.work) == work:
            remove_tree(place)
            link.unlink()


def _remove(path: Path) -> None:
    with suppress(WrongStateError):  # a file system is mounted in it
        remove_tree(path)


def _read_use(place: Path) -> Use | None:
    try:
        return Use(**json.loads((place / _USE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(use: Use, place: Path) -> bool:
    try:
        return (Path(use.work) / LINK).readlink() == place
    except OSError:
        return False


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _with_references(record: Record, references: tuple[str, ...]) -> Record:
    return Record(**asdict(record) | {"references": references})


def _hex(digest: str) -> str:
    return digest.rpartition(":")[2]


def _lock(path: Path) -> int | None:
    """Create and lock a file; return None if another process holds or has removed it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None
