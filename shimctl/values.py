"""What a shim says about its tasks, as frozen values instead of messages.

Units: seconds and bytes, times are UTC.  Absence is None, never a magic number:
the sentinels of the kernel and of Go stop here.

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

# cgroup v1 says "no limit" with the largest page-aligned number, v2 with the
# largest number; anything near either is none.
_NO_LIMIT = 1 << 62


class Status(StrEnum):
    """Where a process is in its life."""

    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"


@dataclass(frozen=True, slots=True)
class Stdio:
    """Where a process reads and writes: fifos, files, URIs, or empty for /dev/null."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class TaskState:
    """One process, as ``State`` reports it.

    ``exit_status`` is None until the process has ended, then the shell's
    number: the exit code, or 128 + signal.
    """

    id: str
    exec_id: str
    bundle: str
    pid: int
    status: Status
    stdio: Stdio
    exit_status: int | None
    exited_at: datetime | None


@dataclass(frozen=True, slots=True)
class Exited:
    """How and when a process ended.  ``pid`` is 0 where the reply has none.

    ``reason`` says why the status is not known; it is 255 then.  Shims do not tell,
    their exit records do.
    """

    exit_status: int
    exited_at: datetime | None
    pid: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Connected:
    """Who answers.  ``task_pid`` is 0 when the shim does not know the task."""

    shim_pid: int
    task_pid: int
    version: str


@dataclass(frozen=True, slots=True)
class Pid:
    """One process of a container; ``exec_id`` is empty unless it was exec'ed."""

    pid: int
    exec_id: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a container uses.  CPU times in seconds, memory in bytes, None for no limit.

    ``io_read`` and ``io_written`` are bytes of block devices, None where nobody counts them.
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


def time_of(stamp: Timestamp) -> datetime | None:
    """Convert a time; None for the zeros of protobuf and Go, and for what is no time."""
    if stamp.seconds <= 0:
        return None
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except ValueError:
        return None  # beyond the year 9999, or a second with more than its nanoseconds


def state_of(reply: task_pb2.StateResponse) -> TaskState:
    """Convert the reply of ``State``."""
    try:
        status = Status(process_pb2.Status.Name(reply.status).lower())
    except ValueError:
        status = Status.UNKNOWN  # a newer shim may know more of them
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
    """Convert the reply of ``Pids``; details we cannot read are left out."""
    return tuple(Pid(process.pid, _exec_id(process.info)) for process in processes)


def _exec_id(info: AnyMessage) -> str:
    if type_name(info) != names.PROCESS_DETAILS:
        return ""
    try:
        return options_pb2.ProcessDetails.FromString(info.value).exec_id
    except DecodeError:
        return ""


def type_name(message: AnyMessage) -> str:
    """Return the full name in ``type_url``, with or without a prefix before the ``/``."""
    return message.type_url.rpartition("/")[2]


def stats_of(metrics: AnyMessage) -> Stats:
    """Decode the metrics of either cgroup version.

    :raises UnsupportedError: they are of another type, as on another platform.
    :raises ShimError: they are not what they say.
    """
    name = type_name(metrics)
    try:
        match name:
            case "io.containerd.cgroups.v1.Metrics":
                return _from_v1(cgroups_v1_pb2.Metrics.FromString(metrics.value))
            case "io.containerd.cgroups.v2.Metrics":
                return _from_v2(cgroups_v2_pb2.Metrics.FromString(metrics.value))
    except DecodeError:
        raise ShimError(f"the shim's metrics are no {name}") from None
    if not name:
        raise UnsupportedError("the shim gave no metrics; its runtime may not have any")
    raise UnsupportedError(f"metrics of type {name} cannot be shown")


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
    )


def _limit(number: int) -> int | None:
    return number if 0 < number < _NO_LIMIT else None
