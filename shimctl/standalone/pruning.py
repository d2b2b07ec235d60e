"""Find and remove exited containers of ``shimctl``, unused images, and dead sockets.

- An exited container of ``shimctl`` is removed as ``shimctl delete`` does, but not while a
  process removes it already.
- An image without a container and without a reference is removed from the image store.  An
  image loses its reference when its source has a newer image under that name.  An image with
  a reference is removed only if the caller wants that.
- A shim's socket is removed if no process listens on it, no directory of a container
  names it, and it is not new: a shim that starts binds its socket before it listens.

Containers of managers stay: their managers delete them.

Source: containerd pkg/shim/util_unix.go for the names of sockets; Docker's reference of
``docker image prune`` for the images.
"""

from __future__ import annotations

import re
import stat
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import ShimError, WrongStateError
from shim.linux.sockets import can_connect
from shimctl.discover import Health, list_shims
from shimctl.images.store import Store
from shimctl.standalone.removal import dispose
from shimctl.standalone.settings import read_settings
from shimctl.standalone.unattended import is_being_removed, problem_of
from shimctl.values import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shimctl.discover import Found
    from shimctl.images.store import Record

YOUNG = 60  # s in which a socket without a listener may be that of a shim that starts
_SOCKET = re.compile("[0-9a-f]{64}")  # the name that shims give to a socket


@dataclass(frozen=True, slots=True)
class Leftover:
    """One object to remove; ``kind`` is container, image or socket."""

    kind: str
    name: str
    detail: str
    remove: Callable[[], Awaitable[None]]


async def leftovers(
    states: Sequence[str | Path] = (), *, named_images: bool = False
) -> list[Leftover]:
    """Find all that can be removed; ``states`` are further state directories of containerd.

    With ``named_images`` also the unused images that have a reference.

    :raises OSError: the image store cannot be read.
    """
    shims = await list_shims(states=states)
    ended = [
        found
        for found in shims
        if found.managed and _has_ended(found) and not is_being_removed(Path(found.bundle))
    ]
    return [*map(_container, ended), *_images(ended, named_images), *_sockets(shims)]


def _has_ended(found: Found) -> bool:
    if found.health is Health.DEAD:
        return found.exited is not None  # by its record; without one it may still run
    return found.status is Status.STOPPED


def _container(found: Found) -> Leftover:
    work = Path(found.bundle)
    runs = _runs_of(work)

    async def check() -> None:
        if _runs_of(work) != runs:
            raise WrongStateError(f"{found.id} was started again since it was listed; it stays")

    async def remove() -> None:
        await dispose(work, found.id, found.namespace, found.address, check)

    status = found.exited.exit_status if found.exited else "unknown"
    detail = "; ".join(filter(None, (f"exit status {status}", problem_of(work))))
    return Leftover("container", f"{found.namespace}/{found.id}", detail, remove)


def _runs_of(work: Path) -> int:
    """Return the number of the container's run, 0 if it cannot be run again."""
    try:
        return read_settings(work).runs
    except ShimError:
        return 0


def _images(ended: Sequence[Found], named: bool) -> list[Leftover]:
    store = Store()
    if not store.path.is_dir():
        return []
    works = {found.bundle for found in ended}
    used = {use.digest for use in store.uses() if use.work not in works}
    return [
        Leftover(
            "image", record.digest, " ".join(record.references), partial(_remove, store, record)
        )
        for record in store.records()
        if record.digest not in used and (named or not record.references)
    ]


async def _remove(store: Store, record: Record) -> None:
    store.make()
    store.sweep()
    await store.remove(record)


def _sockets(shims: Sequence[Found]) -> list[Leftover]:
    found = []
    for shim in shims:
        path = Path(shim.address.removeprefix("unix://"))
        # With an id, a directory or a process names it.
        if shim.health is Health.DEAD and not shim.id and not shim.bundle and _is_dead(path):
            detail = "no process listens on it"
            found.append(Leftover("socket", str(path), detail, partial(_unlink, path)))
    return found


def _is_dead(path: Path) -> bool:
    if not _SOCKET.fullmatch(path.name):
        return False
    try:
        status = path.lstat()
        old = time.time() - max(status.st_mtime, status.st_ctime) > YOUNG
        return stat.S_ISSOCK(status.st_mode) and old and not can_connect(f"unix://{path}")
    except OSError:
        return False


async def _unlink(path: Path) -> None:
    if _is_dead(path):  # still
        path.unlink(missing_ok=True)
