"""The failures a caller can act on, and the ttrpc status of each.

Source of the statuses: containerd pkg/errgrpc, which turns them back into its
own errors on the other side.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.text import explain


class ShimError(Exception):
    """A failure the caller can act on.  Subclasses choose the status."""

    status: ClassVar[Status] = Status.UNKNOWN


class InvalidError(ShimError):
    """The request can never be served, whatever the state."""

    status = Status.INVALID_ARGUMENT


class NotFoundError(ShimError):
    """There is no such container, process, bundle or file."""

    status = Status.NOT_FOUND


class ExistsError(ShimError):
    """The id is taken."""

    status = Status.ALREADY_EXISTS


class WrongStateError(ShimError):
    """The request is fine, the process is just not in a state to serve it."""

    status = Status.FAILED_PRECONDITION


class UnsupportedError(ShimError):
    """This host, kernel or runtime cannot do it."""

    status = Status.UNIMPLEMENTED


class TimedOutError(ShimError):
    """Something we waited for did not come within its bound."""

    status = Status.DEADLINE_EXCEEDED


class UnavailableError(ShimError):
    """The other side is not there, or went away."""

    status = Status.UNAVAILABLE


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
    """Return the status and the one line that tell a caller about ``exc``."""
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
