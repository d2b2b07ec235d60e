"""The states of a process, and the operations that each state allows.

One table serves init processes and execs.  This module is pure.

Source: containerd-shim-runc-v2 process/init_state.go and exec_state.go.
"""

from __future__ import annotations

from enum import Enum

from shim.errors import NotFoundError, WrongStateError


class State(Enum):
    """``CREATED``: the init process waits for Start, or the exec is not started yet."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class Op(Enum):
    """An operation of a manager, or the exit of the process."""

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


# An operation that is not in the row is refused.  A process can be resized and killed
# until it exits; it can be deleted before its start and after its exit.
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
    """The state of one process.

    Call :meth:`check` before the work and :meth:`apply` after it: if ``runc pause``
    fails, the container was not paused.
    """

    def __init__(self, state: State = State.CREATED) -> None:
        self.state = state

    def check(self, operation: Op) -> None:
        """Raise unless the state allows ``operation``.

        :raises NotFoundError: a signal for an exited process, since callers match on
            that status; any operation on a deleted process.
        :raises WrongStateError: any other operation that is not in the table.
        """
        if operation in TABLE[self.state]:
            return
        if operation is Op.KILL and self.state in _ENDED:
            raise NotFoundError("process already finished: not found")
        if self.state is State.DELETED:
            raise NotFoundError(f"cannot {operation.value} a deleted process")
        raise WrongStateError(f"cannot {operation.value} a {self.state.value} process")

    def apply(self, operation: Op) -> None:
        """Change the state as ``operation`` does.

        An operation that the table does not allow changes nothing: the process may
        have exited during the work.
        """
        self.state = TABLE[self.state].get(operation, self.state)
