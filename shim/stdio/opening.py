"""Opens a process's stdin, stdout and stderr.  One object owns all of their fds.

Open it before the runtime runs and pass :attr:`Stdio.child_fds` and
:attr:`Stdio.console_socket` to the runtime.  Then call :meth:`Stdio.started`,
:meth:`Stdio.exited` when the process has exited, :meth:`Stdio.drain` before it
is deleted, and in every case :meth:`Stdio.aclose`.

Source: containerd-shim-runc-v2 process/io.go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.outputaddress import parse_address
from shim.stdio.console import CONSOLE, close_inherited
from shim.stdio.kept import Kept
from shim.stdio.pipes import PipeStdio
from shim.stdio.sinks import LOGGER_READY, open_logger
from shim.stdio.spool import Overflow
from shim.stdio.streams import StdioSpec
from shim.stdio.terminal import TerminalStdio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import trio

    from shim.reaper import Reaper
    from shim.recovery.deposit import Deposit
    from shim.stdio.streams import Stdio


async def open_stdio(
    spec: StdioSpec,
    *,
    nursery: trio.Nursery,
    reaper: Reaper,
    container_id: str,
    namespace: str,
    uid: int = 0,
    gid: int = 0,
    logger_timeout: float = LOGGER_READY,
    overflow: Overflow | None = None,
    directory: str | None = None,
    deposit: Deposit | None = None,
    prefix: str = "",
) -> Stdio:
    """Open the stdio of a process that is about to be created.

    Relays run in ``nursery``, never raise into it, and end with ``aclose()``.
    ``uid`` and ``gid`` own the process's pipes.  A logging program gets
    ``logger_timeout`` seconds to become ready, and ``directory`` as its working
    directory.  ``overflow`` describes where output goes while no client reads its
    fifo; without it the process waits for a reader.  ``deposit`` gets copies of the
    fds, under ``prefix`` and a role, for :func:`restore_stdio`.

    :raises NotFoundError: a fifo or the logging program does not exist.
    :raises InvalidError: the address has an unknown scheme, or its path is neither a
        fifo nor a file.
    :raises TimedOutError: the logging program did not become ready, or the file
        system of a file does not respond.
    """
    address = parse_address(spec.stdout)
    kept = Kept(deposit, prefix)
    logger = None
    if address.scheme in {"binary", "binary-v2"}:
        logger = await open_logger(
            address,
            reaper,
            container_id=container_id,
            namespace=namespace,
            uid=uid,
            gid=gid,
            timeout=logger_timeout,
            directory=directory,
            kept=kept,
        )
    kind = TerminalStdio if spec.terminal else PipeStdio
    stdio = kind(spec, nursery, reaper, logger, overflow, kept)
    try:
        await stdio.open(address, uid, gid)
    except BaseException:
        await stdio.aclose()
        raise
    return stdio


def discard_inherited(fds: Mapping[str, int], deposit: Deposit, prefix: str) -> None:
    """Close the fds of a stdio that is not restored; arguments as of :func:`restore_stdio`."""
    for role, number in fds.items():
        if role == CONSOLE:
            close_inherited(number)
        else:
            os.close(number)
        deposit.drop(prefix + role)


def restore_stdio(
    state: Mapping[str, Any],
    fds: Mapping[str, int],
    *,
    nursery: trio.Nursery,
    reaper: Reaper,
    deposit: Deposit,
    prefix: str,
) -> Stdio:
    """Return the stdio of a process of a killed daemon.

    ``state`` is :meth:`Stdio.state`, and ``fds`` are the inherited fds whose names begin
    with ``prefix``, by the rest of the name; they belong to the result.  The other
    arguments are those of :func:`open_stdio`.

    The result is as after :func:`open_stdio`, without fds for the process: call
    :meth:`Stdio.started` once the process is known to exist, and :meth:`Stdio.exited` if
    it has exited.  If it was not created, :meth:`Stdio.aclose` undoes everything.
    """
    spec = StdioSpec(*state["spec"])
    kept = Kept(deposit, prefix, fds)
    kind = TerminalStdio if spec.terminal else PipeStdio
    overflow = None if state["overflow"] is None else Overflow.restore(state["overflow"])
    stdio = kind(spec, nursery, reaper, None, overflow, kept)
    stdio.restore(state)
    return stdio
