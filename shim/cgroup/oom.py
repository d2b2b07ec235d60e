"""Detect the OOM kills of a container's processes.

The number of kills comes from the kernel's counter; a notification only triggers a read
of the counter.  So a notification that is lost, repeated or early does no harm.

v1: an eventfd registered in cgroup.event_control.  The kernel signals it *before* it
kills a process, and once more when the group is removed.  The counter in
memory.oom_control excludes the groups below, so their counters are read too.
v2: inotify on memory.events: its counter includes the groups below.
Both: systemd removes a scope with its last process, often before the last read of the
counter.  The kernel's log then has the kills that are missing.

Source: Linux Documentation/admin-guide/cgroup-v1/memory.rst "OOM Control",
mm/memcontrol-v1.c; cgroup-v2.rst "memory.events".
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from shim import log
from shim.cgroup.files import read_file, subtree, write_file
from shim.cgroup.kmsg import KernelLog
from shim.cgroup.metrics import parse_pairs
from shim.cgroup.v1 import CgroupV1
from shim.linux import libc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from shim.cgroup.find import Cgroup

_IN_MODIFY = 0x2  # linux/inotify.h
# Seconds between two reads on a host without a free inotify instance.
_POLL = 2.0
# Seconds between reads after v1's notification, which comes before the kill.
_LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class OomCount(NamedTuple):
    """The kernel's counters by group, and the number of kills that was counted from them."""

    last: dict[str, int]
    kills: int


class OomWatch:
    """The kills since the watch was opened.  Use :func:`open_oom_watch`.

    ``read`` returns counters by group.  ``hint`` waits for a notification, after which the
    counters may change within the sum of ``lag`` seconds.  ``reported`` is the count at
    which :meth:`wait_kill` last returned.  ``logged_kills`` returns the kills found in the
    kernel's log, for a group whose counter was removed.
    """

    def __init__(
        self,
        read: Callable[[], dict[str, int]],
        hint: Callable[[], Awaitable[object]],
        lag: tuple[float, ...] = (),
    ) -> None:
        self._read = read
        self._hint = hint
        self._lag = lag
        self.logged_kills: Callable[[], int] = int
        self._last = read()
        self._count = 0
        self.reported = 0

    @property
    def state(self) -> OomCount:
        """The counters as of the last read, for :func:`open_oom_watch` in another process."""
        return OomCount(dict(self._last), self._count)

    def resume(self, earlier: OomCount) -> None:
        """Count on from ``earlier``, instead of from the opening of this watch."""
        self._last = dict(earlier.last)
        self._count = self.reported = earlier.kills

    def count(self) -> int:
        """Return the number of kills so far.

        If the group was removed, kills that are not in the kernel's log may be missing.
        """
        counters = self._read()
        if not counters:
            self._count = max(self._count, self.logged_kills())
        # A group below may be removed and made again: its counter then restarts at 0.
        for name, value in counters.items():
            last = self._last.get(name, 0)
            self._count += value - last if value >= last else value
            self._last[name] = value
        return self._count

    async def wait_kill(self) -> None:
        """Wait until there are more kills than when this last returned.

        One task at a time may wait.  It never returns for a group that was removed or
        has no memory controller: cancel it when the container ends.
        """
        await trio.lowlevel.checkpoint()
        while self.count() <= self.reported:
            await self._hint()
            for pause in self._lag:
                if self.count() > self.reported:
                    break
                await trio.sleep(pause)
        self.reported = self._count


@asynccontextmanager
async def open_oom_watch(
    cgroup: Cgroup, earlier: OomCount | None = None
) -> AsyncIterator[OomWatch]:
    """Count the OOM kills in ``cgroup`` for the length of the block, and those since ``earlier``.

    Without a memory controller, the watch reports no kills.
    """
    if isinstance(cgroup, CgroupV1):
        directory = cgroup.directories.get("memory", "")
        # /sys/fs/cgroup/memory/PATH
        opened, path = _open_v1(directory), "/" + "/".join(directory.split("/")[5:])
    else:
        opened = _open_v2(f"{cgroup.directory}/memory.events")
        path = cgroup.directory.removeprefix(cgroup.mount)
    with opened as watch:
        if earlier is not None:
            watch.resume(earlier)
        if not path.endswith(".scope"):  # only the runtime removes it
            yield watch
            return
        with closing(KernelLog()) as kernel:
            watch.logged_kills = partial(kernel.kills, path, cgroup.pids())
            yield watch


@contextmanager
def _open_v1(directory: str) -> Iterator[OomWatch]:
    control = f"{directory}/memory.oom_control"
    text = read_file(control) if directory else None
    if text is None:
        yield _nothing(directory)
        return
    with _owned(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)) as fd:
        try:
            _register_v1(fd, directory)
        except OSError as exc:  # it was removed, or the kernel lacks these events
            _log_polling(control, exc)
            yield OomWatch(partial(_kills_v1, directory), partial(trio.sleep, _POLL))
            return
        if "oom_kill" in parse_pairs(text):
            yield OomWatch(partial(_kills_v1, directory), partial(_wait_drained, fd), _LAG)
        else:  # Linux before 4.13
            yield OomWatch(
                _Notifications(fd, directory).read, partial(trio.lowlevel.wait_readable, fd)
            )


@contextmanager
def _open_v2(path: str) -> Iterator[OomWatch]:
    if read_file(path) is None:
        yield _nothing(path)
        return
    try:
        inotify = libc.inotify_init()
    except OSError as exc:  # fs.inotify.max_user_instances is 128 for all of root
        _log_polling(path, exc)
        yield OomWatch(partial(_kills_v2, path), partial(trio.sleep, _POLL))
        return
    with _owned(inotify) as fd:
        try:
            libc.inotify_add_watch(fd, path, _IN_MODIFY)
        except OSError as exc:
            _log_polling(path, exc)
            yield OomWatch(partial(_kills_v2, path), partial(trio.sleep, _POLL))
            return
        yield OomWatch(partial(_kills_v2, path), partial(_wait_drained, fd))


def _log_polling(file: str, exc: OSError) -> None:
    text = "cannot get OOM notifications: the counter is polled"
    log.warning(text, file=file, error=exc, seconds=_POLL)


def _nothing(where: str) -> OomWatch:
    log.debug("cannot count OOM kills: no memory controller", cgroup=where)
    return OomWatch(dict, trio.sleep_forever)


@contextmanager
def _owned(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)


async def _wait_drained(fd: int) -> None:
    await trio.lowlevel.wait_readable(fd)
    with suppress(BlockingIOError):
        os.read(fd, 4096)


def _register_v1(eventfd: int, directory: str) -> None:
    control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        write_file(f"{directory}/cgroup.event_control", f"{eventfd} {control}")
    finally:
        os.close(control)


def _kills_v1(directory: str) -> dict[str, int]:
    texts = {here: read_file(f"{here}/memory.oom_control") for here in subtree(directory)}
    return {
        here: parse_pairs(text).get("oom_kill", 0)
        for here, text in texts.items()
        if text is not None
    }


def _kills_v2(path: str) -> dict[str, int]:
    text = read_file(path)
    return {} if text is None else {path: parse_pairs(text).get("oom_kill", 0)}


class _Notifications:
    """Counts v1's notifications, for a kernel that does not count kills."""

    def __init__(self, fd: int, directory: str) -> None:
        self._fd = fd
        self._directory = directory
        self._seen = 0

    def read(self) -> dict[str, int]:
        with suppress(BlockingIOError):
            news = os.eventfd_read(self._fd)
            if Path(self._directory).is_dir():  # otherwise the group was removed
                self._seen += news
        return {self._directory: self._seen}
