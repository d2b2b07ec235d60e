"""Clients that are faster than the shim, with real fifos; under real shims below."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shim.scope import background
from shimctl import stdinfifo
from shimctl.attach.keys import KeyFilter
from shimctl.attach.relay import Pipes, copy_in, open_pipes
from shimctl.backend import TRIO
from shimctl.on_asyncio import ASYNCIO
from shimctl.on_threads import THREADS
from shimctl.pipes import Input, open_streams
from tests.shimctl.faces import FACES, on
from tests.shimctl.place import PATIENCE, Place
from tests.shimctl.spawning import LOTS, ours, place, settings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ours", "place"]

BACKENDS = {"trio": TRIO, "asyncio": ASYNCIO, "threads": THREADS}


def open_reader(path: str) -> int:
    """Open a fifo as a shim does."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


class Copying:
    """The command line's copy of ``data`` into the stdin of a process."""

    def __init__(self, pipes: Pipes, data: bytes) -> None:
        self.pipes, self.data = pipes, data
        self.closed = trio.Event()

    async def run(self) -> None:
        async def close_io() -> None:
            self.closed.set()

        source, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.write(writer, self.data)
            os.close(writer)
            await copy_in(
                source, self.pipes, KeyFilter(b""), typed=trio.lowlevel.checkpoint, closed=close_io
            )
        finally:
            os.close(source)


@pytest.mark.parametrize("data", [b"hi\n", b""])
async def test_input_and_its_end_wait_for_a_shim_that_opens_stdin_late(
    data: bytes, tmp_path: Path
) -> None:
    with open_pipes(tmp_path, stdin=True, terminal=False) as pipes:
        copying = Copying(pipes, data)
        async with background(copying.run):
            await trio.testing.wait_all_tasks_blocked()
            assert not copying.closed.is_set()
            reader = open_reader(pipes.stdio.stdin)
            try:
                with trio.fail_after(PATIENCE):
                    await copying.closed.wait()
                assert os.read(reader, 100) == data
                assert os.read(reader, 100) == b""
            finally:
                os.close(reader)


async def test_input_for_a_shim_that_never_opens_stdin_is_dropped_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdinfifo, "WAIT", 0.1)
    with open_pipes(tmp_path, stdin=True, terminal=False) as pipes:
        copying = Copying(pipes, b"hi\n")
        with trio.fail_after(PATIENCE):
            await copying.run()
        assert copying.closed.is_set()


async def test_stdin_that_is_closed_during_the_wait_stays_closed(tmp_path: Path) -> None:
    with open_pipes(tmp_path, stdin=True, terminal=False) as pipes:

        async def type_() -> None:
            await pipes.write_stdin(b"hi\n")
            done.set()

        done = trio.Event()
        async with background(type_):
            await trio.testing.wait_all_tasks_blocked()
            pipes.close_stdin()
            reader = open_reader(pipes.stdio.stdin)
            try:
                with trio.fail_after(PATIENCE):
                    await done.wait()
                assert os.read(reader, 100) == b""  # no writer has it open
            finally:
                os.close(reader)


async def test_nothing_is_written_to_a_stdin_that_is_no_fifo(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    for path in (file, tmp_path / "none"):
        pipes = Pipes(shimctl.Stdio(stdin=str(path)), -1, None)
        await pipes.write_stdin(b"lost")
        with pytest.raises(shimctl.WrongStateError, match="stdin"):
            stdinfifo.open_writer(str(path))
    assert file.read_bytes() == b"kept"


@pytest.fixture
def asked() -> threading.Event:
    """Return the event that is set when the library begins to wait for the shim."""
    return threading.Event()


def announcing(stdin: Input, asked: threading.Event) -> None:
    never = stdin.dup_done

    def dup_done() -> int:
        asked.set()
        return never()

    stdin.dup_done = dup_done


@pytest.mark.parametrize("data", [b"hi\n", b""])
@pytest.mark.parametrize("name", FACES)
def test_the_library_waits_for_a_shim_that_opens_stdin_late(
    name: str, data: bytes, tmp_path: Path, asked: threading.Event
) -> None:
    async def scenario(_: Any) -> bytes:
        with open_streams(BACKENDS[name], tmp_path, stdin=True) as streams:
            announcing(streams.stdin, asked)
            readers: list[int] = []

            def open_late() -> None:
                asked.wait(1)
                readers.append(open_reader(streams.stdio.stdin))

            shim = threading.Thread(target=open_late)
            shim.start()
            if data:
                await streams.stdin.write(data)
            await streams.stdin.close()
            shim.join()
            try:
                return os.read(readers[0], 100)
            finally:
                os.close(readers[0])

    assert on(name, scenario) == data


@pytest.mark.parametrize("name", FACES)
def test_a_read_that_begins_before_the_shim_opens_the_output_loses_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, asked = BACKENDS[name], threading.Event()
    wait = backend.wait_readable

    async def announced(fd: int, seconds: float | None = None) -> bool:
        asked.set()
        return await wait(fd, seconds)

    monkeypatch.setattr(backend, "wait_readable", announced)

    async def scenario(_: Any) -> bytes:
        with open_streams(backend, tmp_path) as streams:

            def write_late() -> None:
                asked.wait(1)
                for path in (streams.stdio.stdout, streams.stdio.stderr):
                    with open(path, "wb") as file:
                        file.write(b"hi\n")

            shim = threading.Thread(target=write_late)
            shim.start()
            found = await streams.stdout.read() + await streams.stderr.read()
            shim.join()
            return found

    assert on(name, scenario) == b"hi\nhi\n"


@pytest.mark.parametrize("name", FACES)
def test_the_wait_for_a_shim_ends_with_the_process(name: str, tmp_path: Path) -> None:
    async def scenario(face: Any) -> None:
        with open_streams(BACKENDS[name], tmp_path, stdin=True) as streams:
            streams.stdin.dup_done = lambda: os.eventfd(1, os.EFD_CLOEXEC)
            with pytest.raises(face.WrongStateError, match="has closed it, or has exited"):
                await streams.stdin.write(b"hi\n")
            await streams.stdin.close()
            assert streams.stdin.closed

    on(name, scenario)


def scenario_of(place: Place, command: str) -> Any:
    async def scenario(face: Any) -> None:
        async with face.spawn(
            place.bundle("sh", "-c", command), stdin=True, **settings(place)
        ) as process:
            with pytest.raises(face.WrongStateError, match="has closed it, or has exited"):
                await process.stdin.write(5 * LOTS)  # more than a fifo can hold
            await process.stdin.close()
            with pytest.raises(face.WrongStateError, match="closed"):
                await process.stdin.write(b"more")
        with pytest.raises(face.WrongStateError, match="closed"):
            await process.stdin.write(b"after the block")
        await process.stdin.close()

    return scenario


@pytest.mark.e2e
@pytest.mark.parametrize("name", FACES)
def test_a_write_to_a_process_that_exits_is_an_error(name: str, place: Place) -> None:
    on(name, scenario_of(place, "exit 3"))


@pytest.mark.e2e
@pytest.mark.parametrize("name", FACES)
def test_a_write_to_a_process_that_has_closed_its_stdin_is_an_error(
    name: str, ours: Place
) -> None:
    """Go's shim keeps the read end of an init process's pipe; the write waits for the exit."""
    on(name, scenario_of(ours, "exec <&-; exec sleep 1000"))


@pytest.mark.e2e
@pytest.mark.parametrize("name", FACES)
def test_input_that_a_process_does_not_read_does_not_delay_its_output(
    name: str, place: Place
) -> None:
    bundle = place.bundle("false")

    async def scenario(face: Any) -> Any:
        command = ["sh", "-c", "exec <&-; echo a; exit 3"]
        return await face.run(bundle, command, input=LOTS, timeout=PATIENCE, **settings(place))

    assert on(name, scenario) == shimctl.Finished(3, b"a\n", b"")
