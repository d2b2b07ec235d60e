"""Where a process is in its life, and what may be done to it there.

One table for a container's init and for its execs.  Nothing here does any work.

Source: containerd-shim-runc-v2 process/init_state.go and exec_state.go.
"""

from __future__ import annotations

from enum import Enum

from shim.errors import NotFoundError, WrongStateError


class State(Enum):
    """``CREATED`` is a container whose init waits for Start, or an exec not yet started."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class Op(Enum):
    """What a caller, or the process itself, may do."""

    START = "start"
    EXEC = "exec in"
    PAUSE = "pause"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"
    UPDATE = "update"
    KILL = "kill"
    RESIZE = "resize"
    EXIT = "exit"
    DELETE = "delete"


# What is not in a row is refused.  A process may be resized and killed as long
# as it lives; only what has ended, or has never begun, can be deleted.
TABLE: dict[State, dict[Op, State]] = {
    State.CREATED: {
        Op.START: State.RUNNING,
        Op.EXEC: State.CREATED,
        Op.UPDATE: State.CREATED,
        Op.KILL: State.CREATED,
        Op.RESIZE: State.CREATED,
        Op.EXIT: State.STOPPED,
        Op.DELETE: State.DELETED,
    },
    State.RUNNING: {
        Op.EXEC: State.RUNNING,
        Op.PAUSE: State.PAUSED,
        Op.CHECKPOINT: State.RUNNING,
        Op.UPDATE: State.RUNNING,
        Op.KILL: State.RUNNING,
        Op.RESIZE: State.RUNNING,
        Op.EXIT: State.STOPPED,
    },
    State.PAUSED: {
        Op.RESUME: State.RUNNING,
        Op.CHECKPOINT: State.PAUSED,
        Op.UPDATE: State.PAUSED,
        Op.KILL: State.PAUSED,
        Op.RESIZE: State.PAUSED,
        Op.EXIT: State.STOPPED,
    },
    State.STOPPED: {Op.DELETE: State.DELETED},
    State.DELETED: {},
}

_ENDED = (State.STOPPED, State.DELETED)


class Lifecycle:
    """Where one process is in ``TABLE``.

    Ask :meth:`check` before the real work and call :meth:`apply` after it: if
    ``runc pause`` fails, the container was never paused.
    """

    def __init__(self, state: State = State.CREATED) -> None:
        self.state = state

    def check(self, operation: Op) -> None:
        """Raise unless ``operation`` is allowed now.

        :raises NotFoundError: a signal for a process that has ended, which is
            what callers take as "it is already gone"; anything to a deleted one.
        :raises WrongStateError: everything else that is not in the table.
        """
        if operation in TABLE[self.state]:
            return
        if operation is Op.KILL and self.state in _ENDED:
            raise NotFoundError("process already finished: not found")
        if self.state is State.DELETED:
            raise NotFoundError(f"cannot {operation.value} a deleted process")
        raise WrongStateError(f"cannot {operation.value} a {self.state.value} process")

    def apply(self, operation: Op) -> None:
        """Record that ``operation`` has happened.

        The world does not ask first: a process may have ended while the work
        was done.  What the table does not allow then changes nothing.
        """
        self.state = TABLE[self.state].get(operation, self.state)
