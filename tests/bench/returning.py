"""A manager that returns to its shims: it connects to each and calls Connect and Pids.

As containerd does when it starts, which takes one shim after the other; and with many
shims at a time.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from shim.api import task_pb2
from tests.bench.caller import LIMIT, Caller, CallError
from tests.bench.workplace import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from tests.bench.session import Session


def return_serially(sessions: Sequence[Session]) -> float:
    """Return the milliseconds for all of ``sessions``, one after the other."""
    began = time.perf_counter()
    for session in sessions:
        with Caller(session.address, NAMESPACE, session.version) as caller:
            for method, request in _calls(session):
                caller.raw(method, request.SerializeToString())
    return (time.perf_counter() - began) * 1000


def return_together(sessions: Sequence[Session], width: int) -> float:
    """Return the milliseconds for all of ``sessions``, with ``width`` of them at a time.

    :raises CallError: a call failed, or none was answered within the limit.
    """
    waiting = list(sessions)
    active: dict[int, tuple[Caller, list[tuple[str, Message]]]] = {}
    began = time.perf_counter()
    try:
        with select.epoll() as epoll:
            while waiting or active:
                while waiting and len(active) < width:
                    session = waiting.pop()
                    caller = Caller(session.address, NAMESPACE, session.version)
                    fd = caller.sock.fileno()
                    active[fd] = caller, _calls(session)
                    epoll.register(fd, select.EPOLLIN)
                    _send_next(*active[fd])
                ready = epoll.poll(LIMIT)
                if not ready:
                    raise CallError(f"none of {len(active)} shims answered in {LIMIT:g} s")
                for fd, _ in ready:
                    caller, calls = active[fd]
                    if not caller.receive():
                        continue  # a part of the reply
                    if calls:
                        _send_next(caller, calls)
                    else:
                        del active[fd]
                        caller.sock.close()
    finally:
        for caller, _ in active.values():
            caller.sock.close()
    return (time.perf_counter() - began) * 1000


def _calls(session: Session) -> list[tuple[str, Message]]:
    """Return the methods and requests to call."""
    return [
        ("Connect", task_pb2.ConnectRequest(id=session.id)),
        ("Pids", task_pb2.PidsRequest(id=session.id)),
    ]


def _send_next(caller: Caller, calls: list[tuple[str, Message]]) -> None:
    method, request = calls.pop(0)
    caller.send(method, request.SerializeToString())
