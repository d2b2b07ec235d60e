"""The executable ``containerd-shim-trio-v2``: start, delete, -info and -v.

Works under any file name, since managers know shims by theirs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shim.errors import ShimError
from shim.version import VERSION

RUNTIME = "io.containerd.trio.v2"
_USAGE = (
    "run me as a manager does: -namespace NS -id ID [-address SOCKET] start|delete, or -v, -info"
)


def main() -> int:
    """Run one action; return the exit status.  Errors are one line on stderr."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        name = "containerd-shim-trio-v2"
    try:
        return _run(name, sys.argv[1:])
    except (ShimError, OSError) as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        return 1


def _run(name: str, argv: list[str]) -> int:
    # Imported late: an answer to -v costs no protobuf.
    from shim.config import parse_flags

    flags = parse_flags(argv)
    if flags.v or flags.version:
        print(f"{name}:\n  Version:  {VERSION}\n  Runtime:  {RUNTIME}\n  Python:   {_python()}\n")
        return 0
    if flags.info:
        from shim.info import info

        return _write(info(_stdin()))
    match flags.action:
        case "start":
            from shim import bootstrap
            from shim.config import invocation_of

            return _write(bootstrap.start(invocation_of(flags, os.environ, _stdin()), name))
        case "delete":
            from shim import bootstrap

            return _write(bootstrap.delete(flags))
        case "":
            raise ShimError(f"no action; {_USAGE}")
        case unknown:
            raise ShimError(f"unknown action {unknown!r}; {_USAGE}")


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _stdin() -> bytes:
    from shim.config import read_stdin

    return read_stdin()


def _write(data: bytes) -> int:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
