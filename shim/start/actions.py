"""The actions of the executable: start, delete, features, forkserver, -info and -v.

They work with any file name of the executable: a manager chooses a shim by file name.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shim import names
from shim.errors import ShimError
from shim.text import explain, printable
from shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.start.flags import Flags

_USAGE = (
    "use the flags of a manager: -namespace NS -id ID [-address SOCKET] start|delete, or -v, -info"
)


def main(warning: str, deadline: float) -> int:
    """Run one action in this process; return the exit status.  Errors are one line on stderr.

    ``warning`` is the launcher's, for the shim's log.  ``deadline`` is that of the action, on
    the monotonic clock.
    """
    name = Path(sys.argv[0]).name
    if name in ("__main__.py", "launcher.py"):
        name = names.EXECUTABLE
    return run(name, sys.argv[1:], deadline, warning)


def run(name: str, argv: list[str], deadline: float, warning: str = "") -> int:
    """Run the action in ``argv``; return the exit status.

    ``name`` is the program's name in output and errors.
    """
    try:
        return _run(name, argv, warning, deadline)
    except (ShimError, OSError) as exc:
        print(f"{name}: {printable(explain(exc))}", file=sys.stderr)
        return 1


def _run(name: str, argv: list[str], warning: str, deadline: float) -> int:
    # Imported where it is needed: an action loads only the modules that it uses.
    from shim.start.flags import parse_flags

    flags = parse_flags(argv)
    if flags.v or flags.version:
        runtime, python = names.RUNTIME, _python()
        print(f"{name}:\n  Version:  {VERSION}\n  Runtime:  {runtime}\n  Python:   {python}\n")
        return 0
    if flags.info:
        from shim.info import info
        from shim.start.flags import read_stdin

        return _write(info(read_stdin()))
    match flags.action:
        case "start":
            return _start(name, flags, warning, deadline)
        case "delete":
            from shim import delete

            return _write(delete.delete(flags, deadline))
        case "features":
            from shim.info import features

            return features()
        case "forkserver":
            from shim.start import forkserver

            return forkserver.serve_in_foreground(name)
        case "":
            raise ShimError(f"no action is given; {_USAGE}")
        case unknown:
            raise ShimError(f"unknown action {unknown!r}; {_USAGE}")


def _start(name: str, flags: Flags, warning: str, deadline: float) -> int:
    """Start a daemon in this process, and print its answer.

    A manager reads both output streams as the answer, so they are closed to all other
    output until the answer is printed.
    """
    from shim.start import bootstrap, launcher
    from shim.start.flags import invocation_of, read_stdin

    with _silenced_output():
        invocation = invocation_of(flags, os.environ, read_stdin(), warning)
        connection, answer = bootstrap.start(invocation, name, deadline)
    with connection:
        return launcher.print_answer(connection, answer)


@contextmanager
def _silenced_output() -> Iterator[None]:
    """Redirect fds 1 and 2 to /dev/null in the block."""
    kept = {}
    for number in (1, 2):
        with suppress(OSError):  # it is closed
            kept[number] = os.dup(number)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in kept:
            os.dup2(null, number)
        yield
    finally:
        for number, fd in kept.items():
            os.dup2(fd, number)
            os.close(fd)
        os.close(null)


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _write(data: bytes) -> int:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0
