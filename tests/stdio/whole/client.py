"""The manager's side of a process's stdio: fifos of the test, and the bytes in them.

A reader here never holds more of a stream than one read: what counts is its
length and its hash.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.api.task_pb2 import CloseIORequest, DeleteRequest, WaitRequest
from shim.linux import fifos
from tests.stdio.conftest import read_some

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.api.task_grpc import TaskStub
    from shim.linux.fifos import Fd
    from tests.process.rig import Rig

MIB = 1 << 20
# For a shell in a container: continue when the test creates a file.
WAIT_FOR_GO = "until test -e /go; do sleep 0.02; done"


class Streams:
    """Three fifos; ``fields`` of a request name those that are wanted."""

    def __init__(self, rig: Rig, name: str) -> None:
        self._directory = rig.root / f"{name}-io"
        self._directory.mkdir()
        for stream in ("stdin", "stdout", "stderr"):
            os.mkfifo(self.path(stream))

    def path(self, stream: str) -> str:
        return str(self._directory / stream)

    def fields(self, *streams: str) -> dict[str, str]:
        return {stream: self.path(stream) for stream in streams}

    def reader(self, stream: str = "stdout") -> Fd:
        return fifos.open_reader(self.path(stream))

    def writer(self) -> Fd:
        return fifos.open_writer(self.path("stdin"))


class Digest:
    """The content of a stream: how long, and its hash."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    @classmethod
    def of(cls, *parts: bytes) -> Digest:
        digest = cls()
        for part in parts:
            digest.add(part)
        return digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and repr(self) == repr(other)

    def __hash__(self) -> int:
        raise TypeError("it changes")

    def __repr__(self) -> str:
        return f"{self.size} bytes, {self._hash.hexdigest()}"


async def digest_to_end(fd: Fd, *, size: int = 1 << 16) -> Digest:
    """Read to the end, ``size`` bytes at a time at the most, and close."""
    digest = Digest()
    try:
        while data := await read_some(fd, size):
            digest.add(data)
    finally:
        fd.close()
    return digest


async def wait_until(probe: Callable[[], object], *, seconds: float = 20) -> None:
    """Call ``probe`` until it returns true."""
    with trio.fail_after(seconds):
        while not probe():
            await trio.sleep(0.01)


async def wait_asleep(pid: int) -> None:
    """Wait until ``pid`` has slept for a while without being woken."""
    looks: list[str] = []

    def settled() -> bool:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        looks.append("".join(line for line in status if line.startswith(("State", "volun"))))
        return len(looks) > 10 and set(looks[-10:]) == {looks[-1]} and "S (sl" in looks[-1]

    await wait_until(settled)


def close_stdin(id: str, exec_id: str = "") -> CloseIORequest:  # noqa: A002 - the request's
    return CloseIORequest(id=id, exec_id=exec_id, stdin=True)


async def ended(task: TaskStub, id_: str, exec_id: str = "", *, seconds: float = 20) -> int:
    """Wait for the end of a process and delete it; return its exit status."""
    with trio.fail_after(seconds):
        reply = await task.Wait(WaitRequest(id=id_, exec_id=exec_id))
        await task.Delete(DeleteRequest(id=id_, exec_id=exec_id))
    return reply.exit_status


def put_data(rig: Rig, name: str, mebibytes: int) -> Digest:
    """Put random bytes into the containers' root directory; return them."""
    digest = Digest()
    with (rig.rootfs() / name).open("wb") as file:
        for _ in range(mebibytes):
            data = os.urandom(MIB)
            file.write(data)
            digest.add(data)
    return digest
