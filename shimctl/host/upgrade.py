"""Replaces the running daemon of a container by one of the installed version.

The daemon moves to a fork server of the installed code (:mod:`shim.recovery.moving`), whose
replacement answers on the same connection.  If it fails, one of the old code answers.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import names
from shim.errors import (
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.linux.processes import parent_of, reaped_status
from shim.recovery import versions
from shim.ttrpc.calls import ConnectionLostError, UnaryUnaryMethod
from shim.version import VERSION
from shimctl.client import CALL_TIMEOUT, connect, error_of
from shimctl.discover import Health
from shimctl.host import forkserver

if TYPE_CHECKING:
    from shimctl.client import Shim
    from shimctl.discover import Found

# The directory of the installed code, as a daemon of it has it.
PACKAGE = str(Path(versions.__file__).absolute().parents[1])
# Seconds for a move: operations of the daemon under way have ten to end.
_MOVE = 60.0
# The name of a fork server's process.
_SERVER = "trio-shim-fork\n"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The upgrade of one daemon, found as that of the container ``id``.

    ``pid`` and ``version`` are the daemon's after it, ``old_pid`` and ``old_version`` before
    it.  ``changed`` is false if it had the installed version, or was only checked.
    """

    namespace: str
    id: str
    old_version: str
    version: str
    old_pid: int
    pid: int
    changed: bool


class OtherShimError(UnsupportedError):
    """The shim does not know the service: it is another project's, or an old version."""


async def upgrade(found: Found, *, check: bool = False, force: bool = False) -> Upgraded:
    """Replace the daemon of ``found``, unless it has the installed version already.

    With ``check``, only find out whether that is possible; ``version`` is then the one that it
    would get.  With ``force``, also replace a daemon of the installed version.

    :raises OtherShimError: the shim is another one, or an old version.
    :raises UnsupportedError: the installed version cannot continue its containers, or the
        kernel cannot report their exits.
    :raises WrongStateError: nothing keeps the daemon's files, or the server refuses it.
    :raises TimedOutError: the daemon or a fork server does not answer.
    :raises UnavailableError: the daemon or a fork server has ended.
    :raises ShimError: the replacement failed, and the old version goes on.
    """
    if found.health is Health.SILENT:
        raise _silent()
    async with connect(found.address, namespace=found.namespace) as client:
        before = await status_of(client, CALL_TIMEOUT)
        old = Upgraded(
            *(found.namespace, found.id, before["version"], before["version"]),
            *(before["pid"], before["pid"]),
            changed=False,
        )
        if _is_installed(before) and not force:
            return old
        _check(before)
        if check:
            return _with(old, VERSION, before["pid"], changed=False)
        after = await _move(client, before["pid"], before.get("server", 0))
    if not _is_installed(after):
        raise ShimError(
            f"version {VERSION} does not serve the containers: version {after['version']} "
            "goes on; see the shim's log"
        )
    return _with(old, after["version"], after["pid"], changed=True)


async def status_of(client: Shim, timeout: float) -> dict[str, Any]:
    """Return what the daemon replies to Status, see :mod:`shim.ownservice`.

    :raises OtherShimError: the shim is another one, or an old version.
    :raises TimedOutError: the daemon does not answer.
    :raises UnavailableError: the daemon closed the connection.
    """
    return await _call(client, names.STATUS, {}, timeout)


def _with(old: Upgraded, version: str, pid: int, *, changed: bool) -> Upgraded:
    return Upgraded(
        old.namespace, old.id, old.old_version, version, old.old_pid, pid, changed=changed
    )


def _is_installed(status: dict[str, Any]) -> bool:
    return bool(status["version"] == VERSION and status["package"] == PACKAGE)


def _check(status: dict[str, Any]) -> None:
    if not (status["survives"] or status.get("waits")):
        raise WrongStateError(
            "its shim was started without `survive = true`, or without a fork server: it "
            f"stays as it is until its containers end; set that in {names.HOST_FILE}, and "
            "containers that start from then on can be upgraded"
        )
    if problem := versions.unreadable(status["states"]):
        raise UnsupportedError(
            f"version {VERSION} cannot continue containers of version {status['version']}: "
            f"{problem}; end them first, or upgrade to a version in between"
        )
    if status.get("waits"):
        raise WrongStateError(
            "its fork server has ended, and no other one keeps it yet: start a container, or "
            f"run `shimctl forkserver warm --like {status['pid']}`, and repeat the command"
        )
    if _server_of(status["pid"]) == status["pid"] and not _kernel_keeps_exits():
        raise UnsupportedError(
            "the fork server that started its shim has ended, and this kernel does not report "
            "the exit status of another process's children: with Linux 6.15 or newer an "
            "upgrade is possible; end the containers first"
        )


async def _move(client: Shim, pid: int, server: int) -> dict[str, Any]:
    """Move the daemon ``pid`` to a fork server of this code; return the status then.

    ``server`` is the pid of its fork server, 0 if that is not known.
    """
    like = server or _server_of(pid)
    warmed = await forkserver.warm(like=like)
    try:
        return await _call(client, names.MOVE, {"server": warmed.socket}, _MOVE)
    except UnavailableError:
        # A server that was started before its files changed stops to listen.
        again = await forkserver.warm(like=like)
        if again.pid == warmed.pid:
            raise
    return await _call(client, names.MOVE, {"server": again.socket}, _MOVE)


def _server_of(pid: int) -> int:
    """Return the pid of the fork server of the daemon ``pid``, or ``pid`` if that has ended.

    The daemon may be in a cgroup of its own, with the option shim_cgroup.
    """
    try:
        parent = parent_of(pid)
        return parent if Path(f"/proc/{parent}/comm").read_text() == _SERVER else pid
    except (FileNotFoundError, ProcessLookupError):
        return pid


def _kernel_keeps_exits() -> bool:
    """Return whether the kernel reports the exit status of a process that was reaped."""
    child = os.fork()
    if child == 0:
        os._exit(1)
    pidfd = os.pidfd_open(child)
    try:
        os.waitpid(child, 0)
        return reaped_status(pidfd) is not None
    finally:
        os.close(pidfd)


async def _call(
    client: Shim, method: str, value: dict[str, object], timeout: float
) -> dict[str, Any]:
    request = AnyMessage(type_url=names.OWN_SERVICE, value=json.dumps(value).encode())
    call = UnaryUnaryMethod(client.channel, method, AnyMessage, AnyMessage)
    try:
        reply = await call(request, timeout=timeout)
    except GRPCError as exc:
        if exc.status is Status.UNIMPLEMENTED:
            raise OtherShimError(
                "its shim cannot be replaced while it runs: it is another shim, or an old "
                "version; end its containers, and start them again"
            ) from None
        if exc.status is Status.DEADLINE_EXCEEDED:
            raise _silent() from None
        raise error_of(exc, method) from None
    except ConnectionLostError:
        raise UnavailableError(
            f"{method} failed: the shim closed the connection; `shimctl ps -a` shows its state"
        ) from None
    found: dict[str, Any] = json.loads(reply.value)
    return found


def _silent() -> TimedOutError:
    return TimedOutError("its shim does not answer; `shimctl doctor` shows its state")
