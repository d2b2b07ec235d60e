"""The command line of shimctl, from the arguments to the exit code.

:mod:`shimctl.cli.app` finds the command, the module of the same name in
:mod:`shimctl.cli.commands` declares and runs it.  The library never imports this
package, except for ``python -m shimctl``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

FAILED = 125  # the exit code of a failure of shimctl or of the shim
COMPLETE_VARIABLE = "_SHIMCTL_COMPLETE"  # a shell's completion script sets it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    _open_missing()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        # A flush by the interpreter at its end could not report a closed pipe as we do.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader closed our output.  Without this, the interpreter's flush fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run(argv: list[str]) -> int:
    if argv == ["--version"]:  # without click, which takes longer than everything else
        from shim.version import VERSION

        print(f"shimctl {VERSION}")
        return 0
    import click

    from shimctl.cli.app import app

    if COMPLETE_VARIABLE in os.environ:
        from shimctl.cli.completion import complete

        return complete(os.environ[COMPLETE_VARIABLE])
    try:
        with app.make_context("shimctl", argv or ["--help"]) as context:
            return app.invoke(context) or 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        return _refuse(exc)


def _refuse(exc: click.ClickException) -> int:
    """Print the error of a command line in one line on stderr; return the exit code."""
    from shim.text import printable

    context = getattr(exc, "ctx", None)
    path = context.command_path if context else "shimctl"
    close = getattr(exc, "possibilities", None)
    message = exc.message if close else exc.format_message()
    message = (message[:1].lower() + message[1:]).replace("\n\t", " ").rstrip(".")
    if close:
        message += f" (did you mean {' or '.join(close)}?)"
    # The message quotes the arguments; escaping keeps it on one line.
    print(f"{path}: {printable(message)}; see `{path} --help`", file=sys.stderr)
    return FAILED


def _open_missing() -> None:
    """Open /dev/null as stdin, stdout or stderr if shimctl was started without it.

    Otherwise the next file that shimctl opens would get its number.  That may be a fifo
    of a container, and the container's output would be written back into it.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            # open() returns the lowest free number, which is fd: the lower ones are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(fd, "w" if fd else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays
            setattr(sys, name, stream)
