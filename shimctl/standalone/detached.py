"""The stdio of a detached container: a log, and fifos for clients that attach later.

A logging program keeps the log, under any shim, and copies output to attached
clients.  Go's shim gives a container with a logging program no stdin.  Therefore
a container with stdin and without a terminal, and one with an output policy, writes
into fifos; the policy decides what happens to the output while no client reads.

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
SIZE = (80, 24)  # of a terminal without a client
LOG = "output.log"


@dataclass(frozen=True, slots=True)
class Detached:
    """The user's choice: a separate log file, a policy for fifos, or neither."""

    interactive: bool = False
    terminal: bool = False
    log: Path | None = None
    limit: int = logger.LIMIT  # bytes of the log file
    policy: str = ""

    @property
    def through_fifos(self) -> bool:
        """Return whether the shim itself writes into the fifos."""
        return bool(self.policy) or (self.interactive and not self.terminal and not self.log)


@contextmanager
def open_detached(work: Path, wanted: Detached) -> Iterator[Stdio]:
    """Create the fifos and the log link in ``work``; keep them open for the block."""
    if wanted.log is not None and wanted.policy:
        raise InvalidError("--log and --output-policy exclude each other; give one of them")
    with open_pipes(work, stdin=wanted.interactive, terminal=wanted.terminal) as pipes:
        # Some shims open a fifo only when it has a reader.
        yield _stdio(work, wanted, pipes.stdio)
        pipes.keep = True


def _stdio(work: Path, wanted: Detached, fifos: Stdio) -> Stdio:
    if wanted.through_fifos:
        return fifos
    if wanted.log is not None:
        address = address_of_file(os.fsencode(wanted.log.absolute()))
        log_in(work).unlink(missing_ok=True)  # that of an earlier run
        log_in(work).symlink_to(wanted.log.absolute())
    else:
        address = logger_address(log_in(work), wanted.limit)
    return Stdio(fifos.stdin, address, "" if wanted.terminal else address, wanted.terminal)


def log_in(work: Path) -> Path:
    """Return the path of the container's log: the file, or a link to the file of --log."""
    return work / LOG


def logger_address(path: Path, limit: int = logger.LIMIT) -> str:
    """Return the stdout address that starts :mod:`shimctl.standalone.logger` for ``path``.

    It has one pair of arguments, because Go's shim does not keep the order of several.
    """
    code = (
        f"import sys;sys.path.append({os.path.dirname(logger.__file__)!a});"  # noqa: PTH120 - a plain string
        f"import logger;logger.main({str(path)!a},{limit})"
    )
    program = quote(os.fsencode(sys.executable))
    return f"binary://{program}?{quote('-ISc', safe='')}={quote(code, safe='')}"


def attachable(stdio: Stdio, work: Path | None) -> Stdio:
    """Return the fifos to attach to: those of ``stdio``, or the copies in ``work``.

    :raises InvalidError: the output goes elsewhere; the message names the place.
    """
    if not stdio.stdout:
        raise InvalidError("cannot attach: the container was created without output")
    address = parse_address(stdio.stdout)
    if address.scheme == "path":
        stderr = parse_address(stdio.stderr).path
        return Stdio(stdio.stdin, address.path, stderr, stdio.terminal)
    copies = None if work is None else work / "stdout"
    if address.scheme == "binary" and copies is not None and copies.is_fifo():
        stderr = "" if stdio.terminal else str(copies.with_name("stderr"))
        return Stdio(stdio.stdin, str(copies), stderr, stdio.terminal)
    target = f"the file {address.path}" if address.scheme == "file" else "a logging program"
    raise InvalidError(f"cannot attach: the output goes to {target}, not to a fifo")
