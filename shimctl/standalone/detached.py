"""The stdio of a container that nobody is at: a log, and fifos for who attaches later.

A logging program keeps the log, under whatever shim, and copies to who attaches.
But some shims give a container that has one no stdin: with stdin and without a
terminal, and wherever a policy is asked for, the output goes into fifos and the
policy says what becomes of it while nobody reads.

Source: containerd core/runtime/v2/README.md, "Logging"; containerd-shim-runc-v2
process/io.go, where binaryIO has no stdin.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from shim.errors import InvalidError
from shim.outputaddress import address_of_file, parse_address
from shimctl.attach.relay import open_pipes
from shimctl.standalone import logger
from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICIES = ("block", "spool", "drop")
SIZE = (80, 24)  # of a terminal that nobody is at
_LOG = "output.log"


@dataclass(frozen=True, slots=True)
class Detached:
    """What is wanted: a file of its own, a policy for fifos, or neither."""

    interactive: bool = False
    terminal: bool = False
    log: Path | None = None
    limit: int = logger.LIMIT  # bytes, of the log that we keep
    policy: str = ""

    @property
    def through_fifos(self) -> bool:
        """Say whether the shim itself is to write into the fifos."""
        return bool(self.policy) or (self.interactive and not self.terminal and not self.log)


@contextmanager
def open_detached(work: Path, wanted: Detached) -> Iterator[Stdio]:
    """Make what ``wanted`` needs in ``work``, and be there until the container has started."""
    if wanted.log is not None and wanted.policy:
        raise InvalidError("a log in a file leaves nothing unread; give --log or a policy")
    with open_pipes(work, stdin=wanted.interactive, terminal=wanted.terminal) as pipes:
        # Some shims open a fifo only once somebody reads it.
        yield _stdio(work, wanted, pipes.stdio)
        pipes.keep = True


def _stdio(work: Path, wanted: Detached, fifos: Stdio) -> Stdio:
    if wanted.through_fifos:
        return fifos
    if wanted.log is not None:
        address = address_of_file(os.fsencode(wanted.log.absolute()))
        log_in(work).symlink_to(wanted.log.absolute())
    else:
        address = logger_address(log_in(work), wanted.limit)
    return Stdio(fifos.stdin, address, "" if wanted.terminal else address, wanted.terminal)


def log_in(work: Path) -> Path:
    """Return where the log of the container of ``work`` is: ours, or a link to its own file."""
    return work / _LOG


def logger_address(path: Path, limit: int = logger.LIMIT) -> str:
    """Return the stdout address that has :mod:`shimctl.standalone.logger` log into ``path``.

    One pair of arguments, as some shims shuffle them.
    """
    code = (
        f"import sys;sys.path.append({os.path.dirname(logger.__file__)!a});"  # noqa: PTH120 - a string for a string
        f"import logger;logger.main({str(path)!a},{limit})"
    )
    program = quote(os.fsencode(sys.executable))
    return f"binary://{program}?{quote('-ISc', safe='')}={quote(code, safe='')}"


def attachable(stdio: Stdio, work: Path | None) -> Stdio:
    """Return the fifos to attach to: those of ``stdio``, or the copies made in ``work``.

    :raises InvalidError: the output goes elsewhere; the message says where.
    """
    if not stdio.stdout:
        raise InvalidError("its output goes nowhere; nobody can attach to it")
    address = parse_address(stdio.stdout)
    if address.scheme == "path":
        stderr = parse_address(stdio.stderr).path
        return Stdio(stdio.stdin, address.path, stderr, stdio.terminal)
    copies = None if work is None else work / "stdout"
    if address.scheme == "binary" and copies is not None and copies.is_fifo():
        stderr = "" if stdio.terminal else str(copies.with_name("stderr"))
        return Stdio(stdio.stdin, str(copies), stderr, stdio.terminal)
    what = f"the file {address.path}" if address.scheme == "file" else "a logging program"
    raise InvalidError(f"its output goes to {what}, not to a fifo; nobody can attach to it")
