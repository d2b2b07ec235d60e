"""Stand between a containerd 2 and our shim so that both speak as a containerd 2.3 does.

2.3 writes BootstrapParams to the shim and reads a protobuf answer of version 3; 2.0 to
2.2 write the options alone, but take the same answer as JSON.  This program translates,
so that the calls that follow are those of version 3.  Every other action is passed on.

It runs once for each container, without protobuf and other imports that would take longer
than the shim's ``start``; ``tests/e2e/test_modern.py`` compares it with protobuf.

Names: containerd api/runtime/bootstrap/v1/bootstrap.proto, core/runtime/v2/binary.go.
Format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
import sys

_INFO, _DEBUG = 0, -4
_VARINT, _LENGTH = 0, 2  # wire types
_CHUNK = 1 << 16


def write_wrapper(path: str, real: str) -> None:
    """Write a translating program to ``path``, which calls the shim's executable ``real``."""
    start = f'exec "{sys.executable}" -IS "{os.path.abspath(__file__)}" "{real}" "$@"'  # noqa: PTH100 - pathlib takes 5 ms
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\nfor last; do :; done\n[ "$last" != start ] || {start}\n')
        file.write(f'exec "{real}" "$@"\n')
    os.chmod(path, 0o755)  # noqa: PTH101 - as above


def params_of(argv: list[str], environ: dict[str, str], options: bytes) -> bytes:
    """Return the BootstrapParams of a call with the arguments and the input of version 2."""

    def flag(name: str) -> str:
        return argv[argv.index("-" + name) + 1]

    level = _DEBUG if "-debug" in argv else _INFO
    fields = {
        1: flag("id"),
        2: flag("namespace"),
        4: "2.3.0",
        5: environ["TTRPC_ADDRESS"],
        6: flag("address"),
        7: flag("publish-binary"),
    }
    message = b"".join(_bytes(number, value.encode()) for number, value in fields.items())
    if level:
        message += _varint(3 << 3 | _VARINT) + _varint(level)
    if options:
        message += _bytes(8, _bytes(1, options))
    return message


def answer_of(result: bytes) -> str:
    """Return the JSON of a BootstrapResult, which must be of version 3."""
    found: dict[int, int | bytes] = {2: b"", 3: b""}
    at = 0
    while at < len(result):
        key, at = _read(result, at)
        value, at = _read(result, at)
        if key & 7 == _LENGTH:
            found[key >> 3], at = result[at : at + value], at + value
        else:
            found[key >> 3] = value
    assert found.get(1) == 3, f"an answer of another version: {result!r}"
    address, protocol = (str(found[number], "ascii") for number in (2, 3))  # type: ignore[arg-type] # they are bytes
    return f'{{"version":3,"address":"{address}","protocol":"{protocol}"}}'


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value if value else b""


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


def _read(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at ``at`` and the place behind it."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, _CHUNK):
        data += chunk
    return data


def main(argv: list[str]) -> int:
    params = params_of(argv, dict(os.environ), _all(0))
    # The ends are closed in the new process; its standard error is ours.
    (theirs, given), (answer, output) = os.pipe(), os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, theirs, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    os.close(theirs)
    os.close(output)
    with open(given, "wb") as file:
        file.write(params)
    result = _all(answer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        sys.stdout.write(answer_of(result))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
