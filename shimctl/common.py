"""The names that the library has alike for trio, asyncio and threads: values, errors, files."""

from __future__ import annotations

from shim.api.mount_pb2 import Mount
from shim.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.linux.removal import remove_tree
from shimctl.discover import Found, Health
from shimctl.exits import read_address, read_exit
from shimctl.failures import ExitStatusError, RunTimedOutError, WrongFaceError
from shimctl.launching import Launched
from shimctl.options import runc_options
from shimctl.remains import RemainsError
from shimctl.topics import (
    Event,
    TaskCheckpointed,
    TaskCreate,
    TaskDelete,
    TaskEvent,
    TaskExecAdded,
    TaskExecStarted,
    TaskExit,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStart,
    UnknownEvent,
)
from shimctl.values import (
    Connected,
    Exited,
    Finished,
    Pid,
    Stats,
    Status,
    Stdio,
    TaskState,
)

__all__: list[str] = [
    "Connected",
    "Event",
    "ExistsError",
    "ExitStatusError",
    "Exited",
    "Finished",
    "Found",
    "Health",
    "InvalidError",
    "Launched",
    "Mount",
    "NotFoundError",
    "Pid",
    "RemainsError",
    "RunTimedOutError",
    "ShimError",
    "Stats",
    "Status",
    "Stdio",
    "TaskCheckpointed",
    "TaskCreate",
    "TaskDelete",
    "TaskEvent",
    "TaskExecAdded",
    "TaskExecStarted",
    "TaskExit",
    "TaskOOM",
    "TaskPaused",
    "TaskResumed",
    "TaskStart",
    "TaskState",
    "TimedOutError",
    "UnavailableError",
    "UnknownEvent",
    "UnsupportedError",
    "WrongFaceError",
    "WrongStateError",
    "read_address",
    "read_exit",
    "remove_tree",
    "runc_options",
]
