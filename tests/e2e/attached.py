"""A client of a manager that goes on beside the test."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Client(Protocol):
    """``ctr`` or ``docker``."""

    def argv(self, *args: str | Path) -> list[str | Path]:
        """Return the command line with these arguments."""


@contextmanager
def attached(client: Client, *args: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a client beside the block, with pipes, and kill it at the end."""
    with subprocess.Popen(
        client.argv(*args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()
