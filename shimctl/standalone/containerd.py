"""Receive the events that containerd publishes, from its own service, without changing anything.

containerd keeps no events: a subscriber gets those that are published from then on.
grpclib needs asyncio, so each subscription has a thread with an event loop.

Source: containerd api/services/events/v1/events.proto; core/events/exchange.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.api.envelope_pb2 import Envelope
from shim.api.subscribe_pb2 import SubscribeRequest
from shimctl import directories
from shimctl.standalone.published import published

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shimctl.standalone.published import Published

_METHOD = "/containerd.services.events.v1.Events/Subscribe"
_FILTERS = ("topic~=^/tasks/", "topic~=^/containers/")
_PAUSE = 0.5  # s between two attempts to connect


def sockets(states: Sequence[str | Path], given: Sequence[str | Path]) -> list[Path]:
    """Return the paths where a containerd of this host may listen, ``given`` ones first.

    The others are those in and beside containerd's state directories, and CONTAINERD_ADDRESS.
    """
    paths = [Path(path) for path in given]
    if address := os.environ.get("CONTAINERD_ADDRESS"):
        paths.append(Path(address))
    for root in map(Path, directories.roots(states)):
        paths += [root / "containerd.sock", root.parent / "containerd.sock"]
    return list(dict.fromkeys(paths))


async def follow(
    path: Path,
    handler: Callable[[Published], Awaitable[object]],
    failed: Callable[[str], object],
) -> None:
    """Call ``handler`` with each event of the containerd at ``path``, until cancelled.

    Waits for the socket to exist, and connects again whenever the connection ends.
    ``failed`` is called with the reason when an attempt fails for another reason than that
    no process listens.
    """
    last = ""
    while True:
        if _is_socket(path):
            reason = await _subscribe(path, handler)
            if reason and reason != last:
                failed(f"cannot receive the events of containerd at {path}: {reason}; retrying")
            last = reason
        await trio.sleep(_PAUSE)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


class _Subscription:
    """One connection, in a thread with an asyncio loop."""

    def __init__(self, path: Path, handler: Callable[[Published], Awaitable[object]]) -> None:
        self._path = path
        self._handler = handler
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.failure: BaseException | None = None  # of the handler

    def run(self) -> str:
        """Receive until the connection ends, in a thread; return the reason of a failure."""
        from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

        try:
            asyncio.run(self._receive())
        except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
            return ""
        except (StreamTerminatedError, asyncio.CancelledError):
            return ""  # containerd has ended, or we are cancelled
        except GRPCError as exc:
            return exc.message or exc.status.name
        except (OSError, ProtocolError) as exc:
            return str(exc)
        return ""

    async def _receive(self) -> None:
        from grpclib.client import Channel, UnaryStreamMethod

        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._over:
            return
        async with Channel(path=str(self._path)) as channel:
            method = UnaryStreamMethod(channel, _METHOD, SubscribeRequest, Envelope)
            async with method.open() as stream:
                await stream.send_message(SubscribeRequest(filters=_FILTERS), end=True)
                async for envelope in stream:
                    # Blocks the loop until the event is handled: containerd then buffers.
                    try:
                        trio.from_thread.run(self._handler, published(envelope))
                    except BaseException as exc:  # raised by _subscribe, or we are cancelled
                        self.failure = exc
                        return

    def stop(self) -> None:
        """End :meth:`run`; may be called in any thread."""
        self._over = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._task.cancel)


async def _subscribe(path: Path, handler: Callable[[Published], Awaitable[object]]) -> str:
    subscription = _Subscription(path, handler)
    try:
        reason = await trio.to_thread.run_sync(subscription.run, abandon_on_cancel=True)
    finally:
        subscription.stop()
    if subscription.failure is not None:
        raise subscription.failure
    return reason
