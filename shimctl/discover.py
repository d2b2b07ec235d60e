"""Find every shim v2 on this host, of any implementation and any manager.

Any of three things shows a shim: a bundle directory with an ``address`` or
``bootstrap.json`` file (of containerd, Docker, CRI-O or shimctl), a socket in
containerd's socket directory, or a process with a shim's arguments.  Every socket is
probed with Connect and State, many at once, each for a limited time.  A dead
shim, a shim that does not answer, and a socket of another program are results too, not
errors.

Source: containerd core/runtime/v2 (bundle.go, shim.go) and pkg/shim/util_unix.go
for the files, the arguments and the name of the socket.
"""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import (
    InvalidError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
)
from shim.linux import sockets
from shimctl import directories
from shimctl.backend import portable
from shimctl.exits import find_address, read_exit
from shimctl.values import Exited, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shimctl.backend import Backend
    from shimctl.client import Shim

BEGINNING = 6  # the fewest digits of an id's beginning, in commands that change a container
PROBE = 2  # s to probe one socket: connect, Connect, State
SOCKETS = sockets.SOCKET_DIR
_HEXADECIMAL = re.compile("[0-9a-f]+")


class Health(StrEnum):
    """The result of probing a socket."""

    UP = "up"
    DEAD = "dead"  # no process listens
    SILENT = "silent"  # a process listens and does not answer
    FOREIGN = "not a shim"  # a process answers with another protocol


@dataclass(frozen=True, slots=True)
class Found:
    """One container and its shim, as found on this host.

    An unknown text is empty, an unknown pid is 0: a shim found only by its socket has
    no ``bundle``, a dead shim has no pids.  ``status`` is the container's; it is UNKNOWN
    unless ``health`` is UP.  ``managed`` is true for the containers of ``shimctl run``.
    ``exited`` is how the container exited: the shim's answer, or the exit record in the
    bundle if the shim is dead and wrote one.  ``version`` is the shim's, as it answers.
    """

    namespace: str
    id: str
    address: str
    bundle: str = ""
    health: Health = Health.DEAD
    status: Status = Status.UNKNOWN
    pid: int = 0
    shim_pid: int = 0
    managed: bool = False
    detail: str = ""
    exited: Exited | None = None
    version: str = ""


@portable
async def list_shims(
    backend: Backend,
    *,
    states: Sequence[str | Path] = (),
    socket_dir: str | Path = SOCKETS,
    timeout: float = PROBE,
) -> list[Found]:
    """Find every shim and probe it; the list is sorted by namespace and id.

    ``states`` are further state directories of containerd (its ``state`` option,
    default /run/containerd); CONTAINERD_STATE, if set, is always one of them.
    ``socket_dir`` replaces containerd's socket directory.

    A socket that does not answer like a shim within ``timeout`` seconds raises no error:
    its ``health`` and ``detail`` describe the result.
    """
    processes = _shim_processes()
    candidates = _in_directories(states)
    # The socket of a shared daemon has a name for each of its pods.
    known = {_file_at(_path_of(found.address)) for found in candidates}
    for path in _sockets(Path(socket_dir)):
        if (file := _file_at(str(path))) not in known:
            known.add(file)
            candidates.append(Found("", "", f"unix://{path}"))
    results: list[Found] = []

    async def ask(found: Found) -> None:
        results.append(await _probe(found, processes, backend, timeout))

    await backend.run_all([partial(ask, found) for found in candidates])
    return sorted(results, key=lambda found: (found.namespace, found.id, found.address))


async def find_shim(
    text: str, namespace: str = "", *, states: Sequence[str | Path] = (), to_change: bool = False
) -> Found:
    """Find the one container that :func:`choose` picks.

    If ``text`` is the full id of a container with a directory, no shim is probed, so a
    hung shim causes no delay.  The ``health`` is then unknown; it has the value DEAD.
    """
    exact = [found for found in _in_directories(states) if found.id == text]
    inside = [found for found in exact if namespace in ("", found.namespace)]
    shims = inside or await list_shims(states=states)
    return choose(shims, text, namespace, to_change=to_change)


def choose(
    shims: Iterable[Found], text: str, namespace: str = "", *, to_change: bool = False
) -> Found:
    """Pick the one container with an id that is, or begins with, ``text``.

    A full id wins over a longer one that begins with it.  With ``to_change`` a beginning
    counts only if it and the id are hexadecimal, and it has at least ``BEGINNING`` digits:
    a name that begins another name is not taken for it.

    :raises NotFoundError: there is none.
    :raises InvalidError: there are several; the message lists them.
    """
    inside = [found for found in shims if found.id and namespace in ("", found.namespace)]
    matches = [found for found in inside if found.id == text]
    longer = [found for found in inside if text and found.id.startswith(text)]
    if not matches and to_change:
        matches = [found for found in longer if _is_beginning(text, found.id)]
    elif not matches:
        matches = longer
    if not matches:
        where = f" in namespace {namespace}" if namespace else ""
        hint = "see `shimctl ps`"
        if longer:
            hint = f"ids that begin so: {_names(longer)}; this command takes a whole id"
        raise NotFoundError(f"no container {text!r}{where}; {hint}")
    if len(matches) > 1 and len({found.id for found in matches}) == 1:
        spaces = ", ".join(sorted(found.namespace for found in matches))
        raise InvalidError(
            f"{matches[0].id!r} is in several namespaces: {spaces}; use -n NAMESPACE"
        )
    if len(matches) > 1:
        raise InvalidError(f"{text!r} matches {_names(matches)}; use a longer id or -n NAMESPACE")
    return matches[0]


def _is_beginning(text: str, name: str) -> bool:
    return len(text) >= BEGINNING and bool(_HEXADECIMAL.fullmatch(name))


def _names(shims: Iterable[Found]) -> str:
    return ", ".join(f"{found.namespace}/{found.id}" for found in shims)


# Directories and sockets


def _in_directories(states: Sequence[str | Path]) -> list[Found]:
    return [*_ours(), *_in_bundles(states)]


def _ours() -> Iterator[Found]:
    for bundle in directories.own_bundles():
        yield Found(
            bundle.parent.name, bundle.name, find_address(bundle), str(bundle), managed=True
        )


def _in_bundles(states: Sequence[str | Path]) -> Iterator[Found]:
    for root in directories.roots(states):
        for bundle in directories.listed(Path(root), f"{directories.BUNDLES}/*/*"):
            # A bundle with neither belongs to a container that is being created.
            address = find_address(bundle)
            if address or read_exit(bundle):
                yield Found(bundle.parent.name, bundle.name, address, str(bundle))
    for path in directories.listed(Path(directories.CRIO), "*/userdata/address"):
        bundle = path.parent
        if address := find_address(bundle):
            yield Found("default", bundle.parent.name, address, str(bundle))


def _file_at(path: str) -> tuple[int, int] | str:
    """Return the device and the inode of the file at ``path``; the path if it does not exist."""
    try:
        info = os.lstat(path)
    except OSError:
        return path
    return info.st_dev, info.st_ino


def _sockets(directory: Path) -> Iterator[Path]:
    for path in directories.listed(directory, "*"):
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield path
        except OSError:
            continue  # removed meanwhile


# Processes


@dataclass(frozen=True, slots=True)
class _Arguments:
    """A shim's arguments.  ``socket`` is the socket's name that they result in."""

    pid: int
    namespace: str
    id: str
    socket: str


def shim_at(address: str) -> int:
    """Return the pid of the shim with arguments that name the socket ``address``, 0 for none."""
    name = _path_of(address).rpartition("/")[2]
    return next((shim.pid for shim in _shim_processes() if shim.socket == name), 0)


def _shim_processes() -> list[_Arguments]:
    import psutil  # late: loads slowly

    found = []
    for process in psutil.process_iter(["cmdline"]):
        argv = process.info["cmdline"] or []
        flags = _flags(argv)
        # The start and delete commands of a manager have the same flags, but are no daemons.
        if "id" in flags and "namespace" in flags and argv[-1] not in ("start", "delete"):
            where = sockets.socket_address(
                flags.get("address", ""), flags["namespace"], flags["id"]
            )
            name = where.rpartition("/")[2]
            found.append(_Arguments(process.pid, flags["namespace"], flags["id"], name))
    return found


def started_for(pid: int) -> str:
    """Return the id of the container for which the shim ``pid`` was started.

    It stays the same while the containers of a pod or of a shared shim change.  It is
    empty if the process has ended or has no such argument.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = os.fsdecode(file.read()).split("\0")
    except OSError:
        return ""
    return _flags(argv).get("id", "")


def _flags(argv: Sequence[str]) -> dict[str, str]:
    """Read Go-style flags: ``-id x``, ``--id=x``."""
    flags: dict[str, str] = {}
    for index, word in enumerate(argv):
        if not word.startswith("-"):  # a daemon has hundreds of empty words behind its flags
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in ("id", "namespace", "address"):
            following = argv[index + 1] if index + 1 < len(argv) else ""
            flags[name] = value if equals else following
    return flags


def _identify(found: Found, processes: Iterable[_Arguments]) -> Found:
    """Fill in namespace, id and pid from the process that answered or has this socket."""
    name = _path_of(found.address).rpartition("/")[2]
    for process in processes:
        if process.pid == found.shim_pid or process.socket == name:
            return replace(found, namespace=process.namespace, id=process.id, shim_pid=process.pid)
    return found


def _path_of(address: str) -> str:
    return address.removeprefix("unix://")


async def _probe(
    found: Found, processes: Sequence[_Arguments], backend: Backend, timeout: float
) -> Found:
    """Probe one socket: is it a shim, and in which state is its container?"""
    if found.bundle:
        found = replace(found, exited=read_exit(found.bundle))
    if not found.address:
        return replace(found, detail="no shim was started for this directory")
    health, detail = Health.SILENT, f"no answer within {timeout:g} s"
    connected = False
    deadline = time.monotonic() + timeout
    try:
        async with backend.connect(
            found.address, namespace=found.namespace, timeout=timeout
        ) as shim:
            connected = True
            return await _ask(shim, replace(found, exited=None), processes, deadline)
    except TimedOutError:
        pass
    except UnavailableError as exc:
        health, detail = Health.FOREIGN if connected else Health.DEAD, str(exc)
    except ShimError as exc:
        health, detail = Health.FOREIGN, str(exc)
    return replace(_identify(found, processes), health=health, detail=detail)


async def _ask(
    shim: Shim, found: Found, processes: Sequence[_Arguments], deadline: float
) -> Found:
    try:
        who = await shim.connect(found.id, timeout=deadline - time.monotonic())
    except NotFoundError:
        pass  # some shims refuse an unknown id; such a shim is up, too
    else:
        detail = f"its shim would not survive: {who.unkept}" if who.unkept else ""
        found = replace(found, shim_pid=who.shim_pid, version=who.version, detail=detail)
    found = replace(found, health=Health.UP)
    if not found.id:
        found = _identify(found, processes)
    try:
        state = await shim.task(found.id).state(timeout=deadline - time.monotonic())
    except NotFoundError:
        return replace(found, detail="the shim has no such container")
    bundle = state.bundle or found.bundle
    return replace(found, status=state.status, pid=state.pid, bundle=bundle, exited=state.exited)
