"""The command line of shimctl, from the arguments to the exit code.

:mod:`shimctl.cli.arguments` declares the commands and their arguments,
:mod:`shimctl.cli.commands` runs them.  The library never imports this package, except
for ``python -m shimctl``.  Only argparse is imported here, so that ``--help`` and a
shell's completion are quick.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from shimctl.cli.arguments import parser

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The arguments that a shell's completion script passes; no help lists them.
_COMPLETE = ["__complete", "--"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    _open_missing()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:2] == _COMPLETE:
        return _complete(argv[2:])
    args = parser().parse_args(argv)
    # Late: trio and protobuf take as long to load as everything else together.
    from shimctl.cli import commands

    return commands.run(args)


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


def _complete(words: Sequence[str]) -> int:
    from shimctl.cli.completion import complete

    for candidate in complete(parser(), words, _lookup):
        # Skip words that cannot be typed as they are.  A tab separates a word and its help.
        if str(candidate).replace("\t", "").isprintable():
            print(candidate)
    return 0


def _lookup(kind: str, given: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    if kind == "signal":
        from signal import Signals

        yield from ((number.name.removeprefix("SIG"), "") for number in Signals)
        return
    from shimctl import directories

    wanted = given.get("namespace", [""])[-1]
    found = sorted(set(directories.containers(given.get("state", ()))))
    if kind == "namespace":
        yield from ((namespace, "") for namespace in dict.fromkeys(n for n, _ in found))
        return
    for namespace, name in found:
        if wanted in ("", namespace):
            yield name, f"in {namespace}"
