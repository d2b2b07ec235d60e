"""Report the failure of a command: one line on stderr and an exit code.

125 is a failure of shimctl or the shim.  126 and 127 are those of a shell for a command
that cannot be run or does not exist.  128 + signal is for a command that a signal ended.
Any other exit code of ``wait``, ``exec`` and ``run`` is the exit status of the process.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys

from shim.errors import (
    ExistsError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.text import explain, printable
from shimctl.attach.session import CalledOffError
from shimctl.cli import FAILED

NOT_EXECUTABLE, NOT_FOUND = 126, 127

# The runtimes' messages for a command that cannot be run, in lower case.  Source: Go's
# os/exec and syscall messages, which runc passes on; crun container.c, libcrun/utils.c.
_MESSAGES = (
    (NOT_FOUND, ("executable file not found in $path", "executable file `")),
    (NOT_EXECUTABLE, ("permission denied", "is a directory", "exec format error")),
    (NOT_FOUND, ("no such file or directory",)),
)
# The message of a shim that could not run the runtime itself: ours, and containerd's.
_NO_RUNTIME = re.compile("^oci runtime [a-z]+ failed: exec: |unable to retrieve oci runtime error")


def only(exc: BaseException) -> BaseException:
    """Return the one error of a group, or of groups in it; ``exc`` if there are several."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def report(exc: BaseException, command: str, container: str = "", *, several: bool = False) -> int:
    """Print the failure of ``command`` in one line on stderr; return the exit code.

    ``container`` is the id on the command line, for the remedy.  If it is one of
    ``several``, the line begins with it, unless the message has it.  An exception that is not a
    failure of a shim, a file or an argument is a bug; it is raised again.  So is a closed
    output, which :func:`shimctl.cli.main` handles.
    """
    exc = only(exc)
    if isinstance(exc, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(exc, BrokenPipeError):
        raise exc
    if not isinstance(exc, (ShimError, OSError)):
        raise exc
    # A runtime's message may have several lines: `criu failed ...`, `log file: ...`.
    lines = (line.strip("; ") for line in explain(exc).split("\n"))
    text = "; ".join(filter(None, lines))
    has_name = re.search(rf"(?<!\w){re.escape(container)}(?!\w)", text)
    subject = f"{container}: " if several and not has_name else ""
    print(f"shimctl: {printable(subject + text + hint(exc, container))}", file=sys.stderr)
    if isinstance(exc, CalledOffError):
        return 128 + exc.number
    return exit_code_for(str(exc)) if command in ("run", "exec") else FAILED


def hint(exc: ShimError | OSError, container: str = "") -> str:
    """Return a remedy to append to the message of ``exc``, unless it has one."""
    message = str(exc)
    if isinstance(exc, (PermissionError, NotFoundError)) and os.geteuid():
        return "; try again as root, which owns the containers"
    if "; " in message or "`" in message or isinstance(exc, CalledOffError):
        return ""
    name = container or "ID"
    match exc:
        case UnavailableError():
            return "; try `shimctl ps`, which shows the live shims"
        case WrongStateError() | ExistsError():
            return f"; try `shimctl state {name}`"
        case TimedOutError():
            return "; try again, or try `shimctl doctor`, which shows why a shim does not answer"
        case UnsupportedError():
            return f"; `shimctl version {name}` shows which shim it has"
        case OSError(errno=errno.ENOSPC):
            return "; try again after freeing space"
        case OSError(errno=errno.EROFS):
            return "; try another directory, such as SHIMCTL_STATE=/tmp/state"
    return ""


def exit_code_for(message: str) -> int:
    """Return the exit code for a command that the runtime could not run."""
    lowered = message.lower()
    if "exec" in lowered and not _NO_RUNTIME.search(lowered):
        for code, messages in _MESSAGES:
            if any(known in lowered for known in messages):
                return code
    return FAILED
