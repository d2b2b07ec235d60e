"""The errors on which a caller can act, and the ttrpc status of each.

Source of the statuses: containerd pkg/errgrpc, with which the client converts them
back into containerd's errors.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.text import explain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class ShimError(Exception):
    """An error on which the caller can act.  Subclasses set the status."""

    status: ClassVar[Status] = Status.UNKNOWN


class InvalidError(ShimError):
    """The request is invalid in every state of the container."""

    status = Status.INVALID_ARGUMENT


class NotFoundError(ShimError):
    """There is no such container, process, bundle or file."""

    status = Status.NOT_FOUND


class ExistsError(ShimError):
    """The id or the address is in use."""

    status = Status.ALREADY_EXISTS


class WrongStateError(ShimError):
    """The request is valid, but not in the current state of the process."""

    status = Status.FAILED_PRECONDITION


class UnsupportedError(ShimError):
    """This host, kernel or runtime does not support the request."""

    status = Status.UNIMPLEMENTED


class TimedOutError(ShimError):
    """An operation did not finish within its time limit."""

    status = Status.DEADLINE_EXCEEDED


class MustWaitError(Exception):
    """A method that is called without waiting has to wait for ``ready``; it has changed nothing.

    The server waits for that in the call's own task, and calls the method again there.
    """

    def __init__(self, ready: Callable[[], Awaitable[None]]) -> None:
        super().__init__("the call has to wait")
        self.ready = ready


class UnavailableError(ShimError):
    """The peer does not listen, or closed the connection."""

    status = Status.UNAVAILABLE


class FullError(ShimError):
    """The daemon serves as many containers as it may."""

    status = Status.RESOURCE_EXHAUSTED


_BY_ERRNO = {
    errno.ENOENT: Status.NOT_FOUND,
    errno.ESRCH: Status.NOT_FOUND,
    errno.EEXIST: Status.ALREADY_EXISTS,
    errno.EINVAL: Status.INVALID_ARGUMENT,
    errno.ENOTDIR: Status.INVALID_ARGUMENT,
    errno.ENAMETOOLONG: Status.INVALID_ARGUMENT,
    errno.EACCES: Status.PERMISSION_DENIED,
    errno.EPERM: Status.PERMISSION_DENIED,
    errno.ENOSPC: Status.RESOURCE_EXHAUSTED,
    errno.EMFILE: Status.RESOURCE_EXHAUSTED,
    errno.ENFILE: Status.RESOURCE_EXHAUSTED,
    errno.ENOMEM: Status.RESOURCE_EXHAUSTED,
    errno.EAGAIN: Status.UNAVAILABLE,
    errno.ETIMEDOUT: Status.DEADLINE_EXCEEDED,
}


def status_of(exc: BaseException) -> tuple[Status, str]:
    """Return the status of ``exc`` for the caller, and its text in one line."""
    match exc:
        case BaseExceptionGroup(exceptions=[only]):
            return status_of(only)
        case GRPCError():
            return exc.status, exc.message or ""
        case ShimError():
            return exc.status, str(exc)
        case OSError(errno=int(number)):
            return _BY_ERRNO.get(number, Status.UNKNOWN), explain(exc)
        case _:
            return Status.UNKNOWN, str(exc) or type(exc).__name__
