"""A socket that another user serves: no client sends anything to it."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import shimctl
from shim.errors import ExistsError, InvalidError
from shim.linux import sockets
from shim.linux.peers import check_server
from shimctl import aio, blocking
from shimctl.attach import hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = 65534


@contextmanager
def served_by(uid: int, path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    """Listen at ``path`` in a process of ``uid``; give a pipe that gets what arrives there."""
    reader, writer = os.pipe()
    # The credentials are those of the time of listen().
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        go_reader, go = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(uid, uid, uid)
                listener.listen(8)
                os.write(writer, b"ready\n")
                os.close(go)
                connection, _ = listener.accept()
                while data := connection.recv(4096):
                    os.write(writer, data)
            finally:
                os._exit(0)
        os.close(writer)
        os.close(go_reader)
        try:
            assert os.read(reader, 100) == b"ready\n"
            yield reader
        finally:
            os.close(go)
            os.waitpid(child, 0)
            os.close(reader)


async def _on_trio(address: str) -> None:
    async with shimctl.connect(address) as shim:
        await shim.connect()


def _in_a_thread(address: str) -> None:
    with blocking.connect(address) as shim:
        shim.connect()


def _on_asyncio(address: str) -> None:
    import asyncio

    async def main() -> None:
        async with aio.connect(address) as shim:
            await shim.connect()

    asyncio.run(main())


async def test_the_library_on_trio_sends_nothing_to_another_users_server(tmp_path: Path) -> None:
    with served_by(NOBODY, tmp_path / "s") as arrived:
        with pytest.raises(InvalidError, match=f"served by user {NOBODY}"):
            await _on_trio(f"unix://{tmp_path}/s")
        assert os.read(arrived, 4096) == b""


@pytest.mark.parametrize("face", [_in_a_thread, _on_asyncio])
def test_the_library_sends_nothing_to_another_users_server(face: object, tmp_path: Path) -> None:
    assert callable(face)
    with served_by(NOBODY, tmp_path / "s") as arrived:
        with pytest.raises(InvalidError, match=f"served by user {NOBODY}"):
            face(f"unix://{tmp_path}/s")
        assert os.read(arrived, 4096) == b""


def test_the_check_accepts_our_own_user(tmp_path: Path) -> None:
    with served_by(os.geteuid(), tmp_path / "s"), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "s"))
        check_server(sock, "unix://s")


def test_a_hub_of_another_user_is_not_used(tmp_path: Path) -> None:
    with (
        served_by(NOBODY, tmp_path / "attach.sock", socket.SOCK_SEQPACKET) as arrived,
    ):
        with pytest.raises(InvalidError, match=f"served by user {NOBODY}"):
            hub.call(tmp_path)
        assert os.read(arrived, 4096) == b""


def test_a_starter_does_not_join_another_users_server(tmp_path: Path) -> None:
    from shim.start.query import connect

    address = f"unix://{tmp_path}/s"
    with served_by(NOBODY, tmp_path / "s") as arrived:
        with pytest.raises(ExistsError):
            sockets.listen(address)
        # The check whether it lives is a separate connection, without a byte.
        assert os.read(arrived, 4096) == b""
    (tmp_path / "s").unlink()
    with served_by(NOBODY, tmp_path / "s") as arrived:
        with pytest.raises(InvalidError, match=f"served by user {NOBODY}"):
            connect(address)
        assert os.read(arrived, 4096) == b""
