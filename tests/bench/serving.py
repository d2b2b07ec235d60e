"""The cost of a call by its kind of method and connection: ``python -m tests.bench.serving``.

The task that reads a connection calls an immediate method without a task for the call.
A kept connection goes on after the death of the server.  A server process for each variant
serves State; raw clients on non-blocking sockets
have one call each under way.  In each round all are measured once, so the ratios hold on
a busy machine.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.api.task_pb2 import StateRequest
from shim.recovery.connections import Connections
from shim.recovery.deposit import Deposit
from shim.ttrpc import server
from shim.ttrpc.protocol import ClientProtocol
from tests.ttrpc.fake import FakeTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# By the name of the variant: the methods that have no task, and whether connections are kept.
VARIANTS: dict[str, tuple[Sequence[str], bool]] = {
    "immediate": (("State",), False),
    "a task a call": ((), False),
    "kept": (("State",), True),
    "kept, a task": ((), True),
}
CLIENTS = (1, 2, 10, 100)


class _NoKeeper(Deposit):
    """A deposit that leaves nothing: the keeper takes no part in a call."""

    is_active = True

    def put(self, fds: Mapping[str, int]) -> None:
        """Do nothing."""

    def drop(self, *names: str) -> None:
        """Do nothing."""


async def _serve(path: str, immediate: Sequence[str], kept: bool) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(256)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    handlers = server.handlers_of(FakeTask())
    await server.serve(
        listener, handlers, shutdown=trio.Event(), drain=0, cancellable=("Wait",),
        immediate=immediate, store=Connections(_NoKeeper()) if kept else None,
    )  # fmt: skip


def start_server(path: str, immediate: Sequence[str], kept: bool) -> int:
    """Fork a server; return its pid once its socket is there."""
    pid = os.fork()
    if not pid:
        try:
            trio.run(_serve, path, immediate, kept)
        finally:
            os._exit(1)
    while not Path(path).exists():
        time.sleep(0.01)
    return pid


def cpu_of(pid: int) -> float:
    """Return the seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def drive(path: str, clients: int, seconds: float) -> tuple[int, float]:
    """Keep one call of each client under way; return the replies and the seconds."""
    encoder = ClientProtocol()
    poll = select.epoll()
    socks = {}
    requests = {}
    for _ in range(clients):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        requests[sock.fileno()] = 1
        poll.register(sock, select.EPOLLIN)
    payload = StateRequest(id="redis").SerializeToString()
    _, first = encoder.encode_request("containerd.task.v3.Task", "State", payload)
    head, tail = first[:4], first[8:]
    began = time.perf_counter()
    for sock in socks.values():
        sock.send(first)
    count = 0
    while (now := time.perf_counter()) < began + seconds:
        for fd, _ in poll.poll(1):
            socks[fd].recv(4096)
            count += 1
            requests[fd] += 2
            socks[fd].send(head + requests[fd].to_bytes(4) + tail)
    for sock in socks.values():
        sock.close()
    poll.close()
    return count, now - began


def main() -> None:
    """Print a row for each number of clients: CPU per call, and calls per second."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3)
    args = parser.parse_args()
    pids: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="serving-") as directory:
        try:
            for number, (name, (immediate, kept)) in enumerate(VARIANTS.items()):
                path = f"{directory}/{number}"
                pids[name] = start_server(path, immediate, kept)
                drive(path, 2, 0.1)
            for clients in CLIENTS:
                micros: dict[str, list[float]] = {name: [] for name in VARIANTS}
                rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
                for _ in range(args.rounds):
                    for number, name in enumerate(VARIANTS):
                        before = cpu_of(pids[name])
                        count, took = drive(f"{directory}/{number}", clients, args.seconds)
                        micros[name].append((cpu_of(pids[name]) - before) * 1e6 / max(count, 1))
                        rates[name].append(count / took)
                base = statistics.median(micros["immediate"])
                for name in VARIANTS:
                    cpu, rate = statistics.median(micros[name]), statistics.median(rates[name])
                    print(
                        f"{clients:4} clients, {name:13}: {cpu:6.1f} us CPU a call "
                        f"({cpu / base:.2f}), {rate:7.0f} calls/s",
                        flush=True,
                    )
        finally:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
