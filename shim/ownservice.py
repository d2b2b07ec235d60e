"""The service of a daemon for shimctl: its version, and its move to another fork server.

Requests and replies are JSON objects in an Any.  ``Status`` replies

- ``version`` and ``package``: the version of the daemon's code, and its directory;
- ``pid``: the daemon's;
- ``states``: the versions of the states that it leaves to a replacement;
- ``survives``: whether a fork server replaces it when it is killed;
- ``server``: the pid of that fork server, 0 without one;
- ``waits``: whether the daemon is to survive, and waits for a fork server.

``Move`` has the path of a fork server's socket as ``server``.  The daemon ends, its
replacement takes the connection, and replies as to ``Status``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Cardinality, Handler

from shim import names
from shim.errors import InvalidError, UnavailableError
from shim.recovery import moving
from shim.recovery.versions import WRITTEN
from shim.ttrpc.server import replayable, unary
from shim.version import VERSION

if TYPE_CHECKING:
    from shim.container.containers import Containers
    from shim.recovery.deposit import Deposit
    from shim.recovery.turn import Turn

# Seconds for the operations under way to end before a move, and between two looks.
_SETTLE, _PAUSE = 10.0, 0.01
_PACKAGE = str(Path(__file__).absolute().parent)


class OwnService:
    """The service of one daemon.  ``turn`` is that of a daemon that replaced another one."""

    def __init__(self, containers: Containers, deposit: Deposit, turn: Turn | None) -> None:
        self._containers = containers
        self._deposit = deposit
        self._turn = turn
        self._moving = trio.Lock()

    def __mapping__(self) -> dict[str, Handler]:
        methods = {names.STATUS: self.status, names.MOVE: self.move}
        return {
            name: Handler(method, Cardinality.UNARY_UNARY, AnyMessage, AnyMessage)
            for name, method in methods.items()
        }

    @unary
    async def status(self, _request: AnyMessage) -> AnyMessage:
        return self._status()

    @replayable
    async def move(self, request: AnyMessage, replayed: bool) -> AnyMessage:
        if replayed:
            return self._status()
        path = _server_of(request)
        async with self._moving, moving.open_move(self._deposit, path) as channel:
            await self._settle()
            return moving.move(self._deposit, self._turn, path, channel)

    async def _settle(self) -> None:
        with trio.move_on_after(_SETTLE) as scope:
            while not self._containers.is_settled:  # noqa: ASYNC110 - rare, and many kinds of ends
                await trio.sleep(_PAUSE)
        if scope.cancelled_caught:
            raise UnavailableError(
                f"an operation of the shim did not end within {_SETTLE:g} s; try again later"
            )

    def _status(self) -> AnyMessage:
        status: dict[str, Any] = {
            "version": VERSION,
            "package": _PACKAGE,
            "pid": os.getpid(),
            "states": WRITTEN,
            "survives": self._deposit.is_kept,
            "waits": self._deposit.is_active and not self._deposit.is_kept,
            "server": self._deposit.keeper if self._deposit.is_kept else 0,
        }
        return AnyMessage(type_url=names.OWN_SERVICE, value=json.dumps(status).encode())


def _server_of(request: AnyMessage) -> str:
    try:
        path = json.loads(request.value)["server"]
    except (ValueError, KeyError, TypeError):
        path = None
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidError("a move needs the path of a fork server's socket")
    return path
