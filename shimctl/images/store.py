"""Where images lie unpacked, each set of layers once, and who uses them.

    images/HEX.json      what is known of an image, by digest
    rootfs/HEX           its layers unpacked one upon the other, by their chain id
    containers/NAME      what one container writes, until its working directory is gone
    partial/NAME         what is being unpacked; locked by all who write in it
    locks/NAME           held while an image is prepared or removed

Nothing gets its final name before it is complete and on the disk.  A name in
``partial`` whose lock nobody holds was left by a crash, and goes.

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

import trio

from shim.errors import ExistsError, InvalidError, TimedOutError, WrongStateError
from shim.linux.modes import make_directory, make_trusted, write_file
from shim.linux.removal import check_unmounted, remove_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_DEFAULT = "/var/lib/trio-shim/images"
_PATIENCE = 3600  # s for somebody else who prepares the same image
_POLL = 0.05  # s; a lock has no event
_ABANDONED = 3600  # s after which a directory that nobody signed is nobody's
LINK = "image"  # in a container's working directory: where its files are
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
    """A container that has an image's layers for its rootfs."""

    digest: str
    chain: str
    work: str  # the container's working directory


@dataclass(frozen=True, slots=True)
class Partial:
    """A directory that is ours until the block ends, and the open lock that says so."""

    path: Path
    lock: int


class Store:
    """The images below one directory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or default_path()).absolute()
        if set(str(self.path)) & set(":,\\\n"):
            # They end a name in the options of overlay.
            raise InvalidError(f"images cannot lie in {self.path}: no colon, comma or backslash")

    def make(self) -> None:
        """Make the directories that are missing.  Only root looks into other people's files."""
        make_trusted(str(self.path))
        for name in ("images", "rootfs", "containers", "partial", "locks"):
            make_directory(self.path / name, exist_ok=True)

    def rootfs(self, chain: str) -> Path:
        return self.path / "rootfs" / _hex(chain)

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """Hold the lock ``name``, a digest or a word, for the block.

        :raises TimedOutError: somebody else held it for an hour.
        """
        path = self.path / "locks" / _hex(name)
        deadline = trio.current_time() + _PATIENCE
        while (fd := _lock(path)) is None:
            if trio.current_time() > deadline:
                raise TimedOutError(f"somebody else has been holding {path} for an hour")
            await trio.sleep(_POLL)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    @contextmanager
    def partial(self) -> Iterator[Partial]:
        """Own a new directory for the block, and whatever is in it at its end."""
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
            if not path.exists():  # else one that we gave up still writes
                lock.unlink(missing_ok=True)
            os.close(fd)

    def sweep(self) -> None:
        """Remove what crashes left: layers half unpacked, files of containers that are gone."""
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
            if (use is None and _age(place) > _ABANDONED) or (use and not _is_alive(use, place)):
                _remove(place)

    def records(self) -> list[Record]:
        """Return what is there, the oldest first."""
        found = []
        for path in (self.path / "images").glob("*.json"):
            with suppress(OSError, ValueError, TypeError):
                fields = json.loads(path.read_bytes())
                found.append(Record(**fields | {"references": tuple(fields["references"])}))
        return sorted(found, key=lambda record: (record.created, record.digest))

    async def remember(self, record: Record, reference: str) -> None:
        """Write ``record`` down, under ``reference`` from now on, and nothing else is."""
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
        """Return which containers there are."""
        places = sorted((self.path / "containers").glob("*"))
        uses = [(_read_use(place), place) for place in places]
        return [use for use, place in uses if use is not None and _is_alive(use, place)]

    def add_use(self, use: Use) -> Path:
        """Make the directory of a container's own files; its working directory links to it.

        :raises ExistsError: the container has one.
        """
        place = self.path / "containers" / secrets.token_hex(8)
        # The link is what keeps it, so it comes first.
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
        """Forget an image; its layers go if no other image has the same.

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
        """Remove layers that no image has: a crash came before their image was written down."""
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
            # A container that came meanwhile may have seen it there.
            if any(_hex(use.chain) == _hex(chain) for use in self.uses()):
                away.rename(rootfs)
                return
            await trio.to_thread.run_sync(_remove, away)

    def _record_path(self, digest: str) -> Path:
        return self.path / "images" / f"{_hex(digest)}.json"

    def _write(self, record: Record) -> None:
        path = self._record_path(record.digest)
        new = path.with_suffix(".new")
        write_file(new, json.dumps(asdict(record)))
        new.rename(path)


def default_path() -> Path:
    """Return where images lie: SHIMCTL_IMAGES, or /var/lib/trio-shim/images."""
    return Path(os.environ.get("SHIMCTL_IMAGES") or _DEFAULT)


def release(work: Path) -> None:
    """Remove what the container with this working directory wrote; nothing if it is no image's.

    :raises WrongStateError: something is mounted in the working directory, which may
        be the container's rootfs, or in the container's files.
    """
    work = work.absolute()
    check_unmounted(work)
    link = work / LINK
    with suppress(OSError):
        place = link.readlink()
        # Only what add_use made: a link may be anybody's.
        use = _read_use(place)
        if use is not None and Path(use.work) == work:
            remove_tree(place)
            link.unlink()


def _remove(path: Path) -> None:
    with suppress(WrongStateError):  # a mount keeps what it is on
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
    """Make and lock a file; None if somebody has it, or was about to remove it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None
