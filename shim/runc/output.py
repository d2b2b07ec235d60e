"""The stdout or stderr of a command, read while it runs."""

from __future__ import annotations

import os

import trio

# Bytes kept of the end of the output: the last lines have the error.
_TAIL = 1 << 20


class Output:
    """A pipe that a command writes into, and the bytes read from it so far."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        # The read end only: a program with a non-blocking stderr would lose output.
        os.set_blocking(self._reader, False)

    def started(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def _read(self) -> bool:
        """Read the available bytes; return whether more may follow."""
        while True:
            try:
                chunk = os.read(self._reader, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.data += chunk
            if len(self.data) > _TAIL:
                del self.data[: len(self.data) - _TAIL]

    async def follow(self) -> None:
        while self._read():
            await trio.lowlevel.wait_readable(self._reader)

    def text(self) -> str:
        self._read()
        return self.data.decode(errors="replace")

    def close(self) -> None:
        os.close(self._reader)
        if self.writer >= 0:
            os.close(self.writer)
