"""The contents of a shim's replies as frozen dataclasses.

Units: seconds and bytes; times are UTC.  An absent value is None: this module converts
the special numbers of the kernel and of Go.

Source: containerd api/types/task and the cgroups Metrics messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from shim import names
from shim.api import cgroups_v1_pb2, cgroups_v2_pb2, options_pb2, process_pb2
from shim.errors import ShimError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.timestamp_pb2 import Timestamp

    from shim.api import task_pb2

# cgroup v1 reports "no limit" as the largest page-aligned number, v2 as the largest
# number.  A limit of at least this many bytes counts as no limit.
_NO_LIMIT = 1 << 62


class Status(StrEnum):
    """The status of a process, as ``State`` reports it."""

    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"


@dataclass(frozen=True, slots=True)
class Stdio:
    """The stdio paths of a process: fifos, files or URIs; empty is /dev/null."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class TaskState:
    """One process, as ``State`` reports it.

    ``exit_status`` is None until the process exits.  Then it is the exit code, or
    128 + signal as in a shell.
    """

    id: str
    exec_id: str
    bundle: str
    pid: int
    status: Status
    stdio: Stdio
    exit_status: int | None
    exited_at: datetime | None

    @property
    def exited(self) -> Exited | None:
        """The exit of the process; None until it exits."""
        if self.exit_status is None:
            return None
        return Exited(self.exit_status, self.exited_at, self.pid)


@dataclass(frozen=True, slots=True)
class Exited:
    """A process's exit status and time.  ``pid`` is 0 if the reply has none.

    It has the fields of the shim's own :class:`shim.exit.Exit`, with the time converted.

    If the exit status is unknown, ``exit_status`` is 255 and ``reason`` gives the cause.
    Only exit records contain a reason; replies of a shim do not.
    """

    exit_status: int
    exited_at: datetime | None
    pid: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a command: its exit status, and all that it wrote.

    ``exit_status`` is the exit code, or 128 + signal.  With a terminal, ``stdout`` has both
    streams.
    """

    exit_status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    """The shim that answered.  ``task_pid`` is 0 if the shim does not have the task.

    ``unkept`` is why the shim's death would end its containers now, if the shim was started
    with `survive = true`; else it is empty.
    """

    shim_pid: int
    task_pid: int
    version: str
    unkept: str = ""


@dataclass(frozen=True, slots=True)
class Pid:
    """One process of a container; ``exec_id`` is empty unless the process is an exec."""

    pid: int
    exec_id: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """A container's resource usage.

    CPU times are seconds, memory is bytes; a limit of None is no limit.  ``io_read`` and
    ``io_written`` are bytes of block devices, None if the kernel does not count them.
    ``memory_inactive`` is the part of ``memory`` that caches files which no program used
    lately.  ``oom_kills`` is None if the kernel does not count them.
    """

    cgroup: int
    cpu: float
    cpu_user: float
    cpu_system: float
    memory: int
    memory_limit: int | None
    pids: int
    pids_limit: int | None
    io_read: int | None = None
    io_written: int | None = None
    memory_inactive: int = 0
    oom_kills: int | None = None


def time_of(stamp: Timestamp) -> datetime | None:
    """Convert a time; return None for an invalid time and the zero times of protobuf and Go."""
    if stamp.seconds <= 0:
        return None
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except ValueError:
        return None  # after the year 9999, or 10^9 nanoseconds or more


def state_of(reply: task_pb2.StateResponse) -> TaskState:
    """Convert the reply of ``State``."""
    try:
        status = Status(process_pb2.Status.Name(reply.status).lower())
    except ValueError:
        status = Status.UNKNOWN  # a newer shim may have more statuses
    ended = status is Status.STOPPED
    return TaskState(
        id=reply.id,
        exec_id=reply.exec_id,
        bundle=reply.bundle,
        pid=reply.pid,
        status=status,
        stdio=Stdio(reply.stdin, reply.stdout, reply.stderr, reply.terminal),
        exit_status=reply.exit_status if ended else None,
        exited_at=time_of(reply.exited_at) if ended else None,
    )


def pids_of(processes: Iterable[process_pb2.ProcessInfo]) -> tuple[Pid, ...]:
    """Convert the reply of ``Pids``; ignore details of an unknown type."""
    return tuple(Pid(process.pid, _exec_id(process.info)) for process in processes)


def _exec_id(info: AnyMessage) -> str:
    if names.type_name(info.type_url) != names.PROCESS_DETAILS:
        return ""
    try:
        return options_pb2.ProcessDetails.FromString(info.value).exec_id
    except DecodeError:
        return ""


def stats_of(metrics: AnyMessage) -> Stats:
    """Decode the metrics of either cgroup version.

    :raises UnsupportedError: the metrics are of another type, as on another platform.
    :raises ShimError: the metrics cannot be decoded as their type.
    """
    name = names.type_name(metrics.type_url)
    try:
        match name:
            case "io.containerd.cgroups.v1.Metrics":
                return _from_v1(cgroups_v1_pb2.Metrics.FromString(metrics.value))
            case "io.containerd.cgroups.v2.Metrics":
                return _from_v2(cgroups_v2_pb2.Metrics.FromString(metrics.value))
    except DecodeError:
        raise ShimError(f"cannot decode the shim's metrics as {name}") from None
    if not name:
        raise UnsupportedError("the shim returned no metrics; its runtime may have none")
    raise UnsupportedError(f"cannot decode metrics of the unknown type {name}")


def _from_v1(metrics: cgroups_v1_pb2.Metrics) -> Stats:
    usage = metrics.cpu.usage  # nanoseconds
    moved = metrics.blkio.io_service_bytes_recursive
    return Stats(
        cgroup=1,
        cpu=usage.total / 1e9,
        cpu_user=usage.user / 1e9,
        cpu_system=usage.kernel / 1e9,
        memory=metrics.memory.usage.usage,
        memory_limit=_limit(metrics.memory.usage.limit),
        pids=metrics.pids.current,
        pids_limit=_limit(metrics.pids.limit),
        io_read=sum(e.value for e in moved if e.op.lower() == "read") if moved else None,
        io_written=sum(e.value for e in moved if e.op.lower() == "write") if moved else None,
        memory_inactive=metrics.memory.total_inactive_file,
        oom_kills=(
            metrics.memory_oom_control.oom_kill if metrics.HasField("memory_oom_control") else None
        ),
    )


def _from_v2(metrics: cgroups_v2_pb2.Metrics) -> Stats:
    cpu = metrics.cpu  # microseconds
    moved = metrics.io.usage
    return Stats(
        cgroup=2,
        cpu=cpu.usage_usec / 1e6,
        cpu_user=cpu.user_usec / 1e6,
        cpu_system=cpu.system_usec / 1e6,
        memory=metrics.memory.usage,
        memory_limit=_limit(metrics.memory.usage_limit),
        pids=metrics.pids.current,
        pids_limit=_limit(metrics.pids.limit),
        io_read=sum(entry.rbytes for entry in moved) if moved else None,
        io_written=sum(entry.wbytes for entry in moved) if moved else None,
        memory_inactive=metrics.memory.inactive_file,
        oom_kills=metrics.memory_events.oom_kill if metrics.HasField("memory_events") else None,
    )


def _limit(number: int) -> int | None:
    return number if 0 < number < _NO_LIMIT else None
