"""The control socket of minid: one request a connection, one line of JSON each way.

The request is ``{"do": VERB, "name": NAME}``.  The answer is ``{"containers": LIST}``,
as ``ps`` shows it, or ``{"error": TEXT}``.  The size of a request, the time to send it
and the number of connections are limited, so that a bad client affects no other.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from minid.failures import EXPECTED
from shimctl import InvalidError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

VERBS = ("ps", "up", "down", "restart")
_MAX_REQUEST = 4096  # bytes of a request
_IO_TIMEOUT = 5.0  # s to send a request, and to send an answer
_MAX_CONNECTIONS = 64  # at a time; further ones wait


async def serve(
    path: Path,
    handler: Callable[[str, str], Awaitable[dict[str, Any]]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve requests on ``path`` until cancelled; ``handler`` returns the answer.

    ``handler`` is called with the verb and the name.  Only the same user may connect.
    The caller holds the lock of the directory, so an existing socket is that of a dead
    minid and is replaced.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        umask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(umask)
        sock.listen(_MAX_CONNECTIONS)
        try:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            connections = trio.CapacityLimiter(_MAX_CONNECTIONS)
            async with listener, trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await connections.acquire_on_behalf_of(token := object())
                    stream = await listener.accept()
                    answer = partial(_answer, stream, handler)
                    nursery.start_soon(_answer_and_release, answer, connections, token)
        finally:
            path.unlink(missing_ok=True)


async def _answer_and_release(
    answer: Callable[[], Awaitable[object]], connections: trio.CapacityLimiter, token: object
) -> None:
    try:
        await answer()
    finally:
        connections.release_on_behalf_of(token)


async def _answer(
    stream: trio.SocketStream, handler: Callable[[str, str], Awaitable[dict[str, Any]]]
) -> None:
    async with stream:
        try:
            verb, name = parse(await _read_line(stream, _IO_TIMEOUT))
            reply = await handler(verb, name)
        except EXPECTED as exc:
            reply = {"error": str(exc)}
        with suppress(trio.BrokenResourceError), trio.move_on_after(_IO_TIMEOUT):
            await stream.send_all(json.dumps(reply).encode() + b"\n")


async def _read_line(stream: trio.SocketStream, seconds: float) -> bytes:
    line = b""
    with trio.move_on_after(seconds), suppress(trio.BrokenResourceError):
        while b"\n" not in line and len(line) <= _MAX_REQUEST:
            more = await stream.receive_some(_MAX_REQUEST)
            if not more:
                break
            line += more
    if len(line) > _MAX_REQUEST or b"\n" not in line:
        raise InvalidError(f"a request is one line of at most {_MAX_REQUEST} bytes")
    return line.partition(b"\n")[0]


def parse(line: bytes) -> tuple[str, str]:
    """Return the verb and the name in a request.

    :raises InvalidError: ``line`` is not a request.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidError("a request is a JSON object") from None
    if not isinstance(fields, dict):
        raise InvalidError("a request is a JSON object")
    verb, name = fields.get("do"), fields.get("name", "")
    if verb not in VERBS or not isinstance(name, str):
        raise InvalidError(f"a request has a name, and one of {', '.join(VERBS)} as do")
    return verb, name


async def request(path: Path, verb: str, name: str) -> dict[str, Any]:
    """Send a request and return the answer; the wait for it has no time limit.

    :raises UnavailableError: no minid listens on ``path``, or it exited meanwhile.
    :raises NotFoundError: minid refuses the request; the message is minid's.
    """
    try:
        stream = await trio.open_unix_socket(str(path))
    except OSError as exc:
        raise UnavailableError(f"no minid answers at {path}: {exc.strerror or exc}") from None
    async with stream:
        answer = b""
        with suppress(trio.BrokenResourceError):
            await stream.send_all(json.dumps({"do": verb, "name": name}).encode() + b"\n")
            while not answer.endswith(b"\n") and (more := await stream.receive_some()):
                answer += more
    if not answer.endswith(b"\n"):
        raise UnavailableError("minid exited before it answered")
    reply: dict[str, Any] = json.loads(answer)
    if "error" in reply:
        raise NotFoundError(str(reply["error"]))
    return reply
