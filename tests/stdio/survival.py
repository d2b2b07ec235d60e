"""A process whose stdio is relayed by daemons that are killed, one after the other.

This process is the keeper: it holds the copies of the fds, forks each daemon, kills it
and gives the next one what it has left.  It also plays the manager.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import trio

from shim.linux.fdpassing import receive_fds, send_fds
from shim.linux.fds import close_all_but
from shim.linux.libc import set_child_subreaper
from shim.reaper import open_reaper
from shim.recovery.deposit import Deposit
from shim.recovery.messages import EXIT, encode
from shim.stdio import filehelper, keptoverflow
from shim.stdio.opening import open_stdio, restore_stdio
from tests.e2e.waiting import PATIENCE
from tests.recovery.keeper import Keeper
from tests.stdio.playing import send_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shim.stdio.spool import Overflow
    from shim.stdio.streams import Stdio, StdioSpec

PREFIX = "io/c//"
# Imported here, not again by each daemon, which would be killed before it can do anything.
LOADED = (filehelper, keptoverflow)
_MESSAGE = 1 << 16
# Seconds that a daemon needs to go on, on an idle machine.
_NEEDED = 0.02


class _ReapingKeeper(Keeper):
    """Answers with the exits of the daemons' processes, which it reaps."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(channel)
        self._statuses: dict[str, tuple[int, int]] = {}

    def answer(self, name: str) -> None:
        self._reap(name)
        with contextlib.suppress(OSError):  # the daemon was killed
            self.channel.send(encode(EXIT, name, *map(str, self._statuses.get(name, ()))))

    def _reap(self, name: str) -> None:
        if name in self._statuses or name not in self.fds:
            return
        try:
            info = os.waitid(os.P_PIDFD, self.fds[name], os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return
        if info is not None:
            exited = info.si_code == os.CLD_EXITED
            status = info.si_status << 8 if exited else info.si_status
            self._statuses[name] = (status, time.time_ns())


class Survival:
    """The daemons, the keeper and the manager.  Use :func:`surviving`."""

    def __init__(self, spec: StdioSpec, script: str, overflow: Overflow | None, rest: int) -> None:
        self.kills = 0
        self.received = bytearray()
        self.ended = False
        self._spec = spec
        self._script = script
        self._overflow = overflow
        self._paused = False  # the first daemon waits before it relays
        self._random = random.Random(rest)
        self._state = ""  # JSON
        self._exited = False
        self._pid = -1
        self._process = -1  # a pidfd of the shell
        self._keeper = _ReapingKeeper(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self._control: socket.socket
        self._reader = -1
        self._writer = -1
        self._unsent = memoryview(b"")
        self._closes_writer = True
        self._ready = False
        self._launched = 0.0
        self._needed = _NEEDED

    # -- the keeper ----------------------------------------------------------------

    def launch(self) -> None:
        """Fork a daemon, which goes on from what the last one left."""
        ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready = False
        self._launched = time.monotonic()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                close_all_but(channel.fileno(), control.fileno(), *self._keeper.fds.values())
                trio.run(self._serve, channel, control)
                status = 0
            finally:
                os._exit(status)
        channel.close()
        control.close()
        self._keeper.follow(ours)
        self._control.setblocking(False)

    def kill(self) -> None:
        """Kill the daemon and take what it had sent."""
        os.kill(self._pid, signal.SIGKILL)
        self._wait_daemon()
        self.kills += 1

    def replace(self) -> None:
        """Kill the daemon, and wait until the next one relays."""
        self.kill()
        self.launch()
        self.wait_running()

    def _wait_daemon(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        self._pid = -1
        self._keeper.take()
        self._take_control()
        self._keeper.channel.close()
        self._control.close()
        return status

    @property
    def kept(self) -> set[str]:
        """The roles of the fds that are kept."""
        return {name.removeprefix(PREFIX) for name in self._keeper.fds}

    # -- the manager ---------------------------------------------------------------

    def open_reader(self, path: str) -> None:
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.ended = False

    def close_reader(self) -> None:
        os.close(self._reader)
        self._reader = -1

    def open_writer(self, path: str) -> None:
        self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        """Write ``data`` to the stdin fifo while :meth:`run_until` runs, and close it."""
        self.begin_write(data)
        self._closes_writer = True

    def begin_write(self, data: bytes) -> None:
        """Write ``data`` as :meth:`write`, and leave the fifo open."""
        self._unsent = memoryview(data)
        self._closes_writer = False

    def close_writer(self) -> None:
        os.close(self._writer)
        self._writer = -1

    def call(self, name: str) -> None:
        """Have the daemon do something.  It must be running."""
        self._control.send(name.encode())

    def exit(self) -> None:
        """Wait for the end of the process, and tell it the daemon and those that follow."""
        self.run_until(lambda: bool(select.select([self._process], [], [], 0)[0]))
        self._exited = True
        self.wait_running()
        self.call("exited")

    def drain(self) -> None:
        """Have the daemon wait until the output has left it."""
        self.wait_running()
        self._ready = False
        self.call("drain")
        self.wait_running()

    def run_until(
        self, done: Callable[[], bool], *, every: tuple[float, float] | None = None
    ) -> None:
        """Go on until ``done``; kill the daemon at random times, within the seconds ``every``.

        On a busy machine they are more seconds, as many times as a daemon needs more to go on.
        """
        deadline = time.monotonic() + 40 * PATIENCE
        due = self._due(every) if every else float("inf")
        while not done():
            assert time.monotonic() < deadline, f"it hung: {self.kept}, {len(self.received)}"
            self._turn(min(0.05, max(0.0, due - time.monotonic())))
            if every is not None and time.monotonic() >= due and not done():
                was_ready = self._ready
                self.kill()
                if not was_ready:
                    self._needed *= 1.5
                self.launch()
                due = self._due(every)

    def _due(self, every: tuple[float, float]) -> float:
        return time.monotonic() + self._random.uniform(*every) * self._needed / _NEEDED

    def wait_running(self) -> None:
        """Wait until the daemon relays."""
        self.run_until(lambda: self._ready)

    def _turn(self, timeout: float) -> None:
        poll = select.poll()
        for fd in (self._keeper.channel.fileno(), self._control.fileno(), self._reader):
            if fd >= 0 and not (fd == self._reader and self.ended):
                poll.register(fd, select.POLLIN)
        if self._unsent:
            poll.register(self._writer, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll(timeout * 1000)}
        if self._keeper.channel.fileno() in ready:
            self._keeper.take()
        if self._control.fileno() in ready:
            self._take_control()
        if self._reader in ready:
            self._read()
        if self._writer in ready:
            self._unsent = self._unsent[os.write(self._writer, self._unsent[: 1 << 16]) :]
            if not self._unsent and self._closes_writer:
                self.close_writer()

    def _take_control(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                message, fds, _ = receive_fds(self._control, _MESSAGE, 1)
                if message == b"running":
                    self._ready = True
                    needed = time.monotonic() - self._launched
                    self._needed = max(_NEEDED, (self._needed + needed) / 2)
                elif message == b"process":
                    [self._process] = fds
                elif message:
                    self._state = message.decode()
                else:
                    return

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._reader, 1 << 16)
            self.received += data
            self.ended = not data

    # -- the daemon ----------------------------------------------------------------

    async def _serve(self, channel: socket.socket, control: socket.socket) -> None:
        deposit = Deposit(channel)
        async with open_reaper() as reaper, trio.open_nursery() as nursery:
            nursery.start_soon(deposit.run)
            common: dict[str, Any] = {
                "nursery": nursery,
                "reaper": reaper,
                "deposit": deposit,
                "prefix": PREFIX,
            }
            if self._state:
                fds = {name.removeprefix(PREFIX): fd for name, fd in self._keeper.fds.items()}
                stdio = restore_stdio(json.loads(self._state), fds, **common)
            else:
                stdio = await open_stdio(
                    self._spec,
                    container_id="c",
                    namespace="test",
                    overflow=self._overflow,
                    **common,
                )
                numbers = stdio.child_fds
                if self._spec.terminal:
                    process = send_terminal(stdio)
                    numbers = (process.number,) * 3
                control.send(json.dumps(stdio.state()).encode())
                stream = dict(enumerate(numbers))
                child = reaper.spawn(["sh", "-c", self._script], fds=stream)
                send_fds(control, b"process", [child.pidfd])
                if self._spec.terminal:
                    process.close()
                if self._paused:
                    control.send(b"running")
                    await trio.sleep_forever()
            await stdio.started()
            if self._exited:
                stdio.exited()
            control.send(b"running")
            await self._obey(control, stdio)
            # The deposit sends the drops, until the keeper has them.
            with trio.move_on_after(10 * PATIENCE):
                await trio.lowlevel.wait_readable(control)
            nursery.cancel_scope.cancel()

    async def _obey(self, control: socket.socket, stdio: Stdio) -> None:
        while True:
            await trio.lowlevel.wait_readable(control)
            match control.recv(64):
                case b"close_stdin":
                    stdio.close_stdin()
                case b"exited":
                    stdio.exited()
                case b"drain":
                    await stdio.drain()
                    control.send(b"running")
                case _:
                    await stdio.aclose()
                    return


@contextlib.contextmanager
def surviving(
    spec: StdioSpec,
    script: str,
    overflow: Overflow | None = None,
    seed: int = 0,
    *,
    paused: bool = False,
) -> Iterator[Survival]:
    """Run the shell ``script`` with the stdio ``spec``, relayed by a first daemon.

    With ``paused`` that daemon does not relay: it has to be killed.
    """
    survival = Survival(spec, script, overflow, seed)
    survival._paused = paused
    set_child_subreaper()
    try:
        survival.launch()
        survival.wait_running()
        yield survival
        survival.wait_running()
        survival.call("close")
        survival.run_until(lambda: not survival.kept)
        survival.call("end")
        assert survival._wait_daemon() == 0
    finally:
        if survival._pid > 0:
            survival.kill()
        for name in list(survival._keeper.fds):
            survival._keeper.discard(name)
        set_child_subreaper(wanted=False)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(survival._process, signal.SIGKILL)
        for fd in (survival._reader, survival._writer, survival._process):
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
