"""The hub and its members with real fifos and sockets, and no container."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import NotFoundError
from shim.scope import background
from shimctl.attach import hub
from shimctl.attach.client import _Client
from shimctl.attach.keys import KeyFilter
from shimctl.attach.relay import Pipes
from shimctl.values import Stdio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shimctl.attach.hub import Size
    from shimctl.client import Task

PATIENCE = 30  # s


@contextmanager
def open_process() -> Iterator[tuple[Pipes, int, int]]:
    """Stand for a process: our ends of its pipes, then its stdout and its stdin."""
    out, stdout = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/stdin"
        os.mkfifo(path)
        stdin = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        pipes = Pipes(Stdio(stdin=path, terminal=True), out, None)
        try:
            yield pipes, stdout, stdin
        finally:
            pipes.close_stdin()
            for fd in (out, stdin):
                os.close(fd)


@contextmanager
def member(
    place: Path, size: Size | None = None, *, fresh: bool = False
) -> Iterator[socket.socket]:
    sock = hub.call(place)
    assert sock is not None
    with sock:
        sock.send(hub.hello(size, time.monotonic(), fresh=fresh))
        yield sock


async def output_of(sock: socket.socket, length: int) -> bytes:
    """Receive until that much output has come."""
    seen = b""
    with trio.fail_after(PATIENCE):
        while len(seen) < length and (message := await hub.receive(sock)):
            if message[:1] == hub.OUT:
                seen += message[1:]
    return seen


async def kind_of(sock: socket.socket, *kinds: bytes) -> bytes:
    """Receive until a message of one of these kinds has come."""
    with trio.fail_after(PATIENCE):
        while message := await hub.receive(sock):
            if message[:1] in kinds:
                return message
    return b""


class Sizes(list["Size"]):
    async def resize(self, width: int, height: int) -> None:
        await trio.lowlevel.checkpoint()
        self.append((width, height))


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


async def test_all_members_get_every_byte_and_the_end(tmp_path: Path) -> None:
    sent = os.urandom(60_000) * 20
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(tmp_path, pipes, None) as center:
            with member(tmp_path) as one, member(tmp_path) as two:
                for sock in (one, two):
                    await kind_of(sock, hub.NUMBER)
                seen: dict[socket.socket, bytes] = {}

                async def collect(sock: socket.socket) -> None:
                    seen[sock] = await output_of(sock, len(sent))
                    assert await kind_of(sock, hub.END) == hub.END

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(collect, one)
                    nursery.start_soon(collect, two)
                    nursery.start_soon(center.pump)
                    rest = memoryview(sent)
                    while rest:
                        await trio.lowlevel.wait_writable(stdout)
                        rest = rest[os.write(stdout, rest[:4096]) :]
                    os.close(stdout)
    assert seen == {one: sent, two: sent}


async def test_a_member_that_does_not_read_is_cut_off_and_keeps_nobody(tmp_path: Path) -> None:
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(tmp_path, pipes, None) as center:
            with member(tmp_path) as slow, member(tmp_path) as quick:
                await kind_of(quick, hub.NUMBER)
                total = 3 * hub.BEHIND

                async def write() -> None:
                    for _ in range(total // 4096):
                        await trio.lowlevel.wait_writable(stdout)
                        os.write(stdout, b"x" * 4096)

                async with background(center.pump, write):
                    assert len(await output_of(quick, total)) == total
                kept = 0
                while (message := await hub.receive(slow))[:1] != hub.CUT:
                    kept += len(message)
                assert hub.BEHIND / 2 < kept < total
                assert await hub.receive(slow) == b""
        os.close(stdout)


async def test_a_member_that_is_alone_may_be_slow(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with open_process() as (pipes, stdout, _), ours:
        async with hub.open_hub(tmp_path, pipes, None) as center:
            own = center.admit(theirs, own=True)
            total = 3 * hub.BEHIND
            written = 0

            async def write() -> None:
                nonlocal written
                while written < total:
                    await trio.lowlevel.wait_writable(stdout)
                    written += os.write(stdout, b"x" * 4096)

            async with background(partial(center.converse, own), center.pump, write):
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert written < total  # the process waits, as without a client
                assert len(await output_of(ours, total)) == total
        os.close(stdout)


async def test_a_slow_lone_client_gets_stdout_and_stderr_whole(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    err, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    total = 3 * hub.BEHIND
    counts = {hub.OUT: 0, hub.ERR: 0, hub.CUT: 0}
    with open_process() as (pipes, stdout, _), ours:
        pipes.stderr = err
        async with hub.open_hub(tmp_path, pipes, None) as center:
            own = center.admit(theirs, own=True)

            async def write(fd: int) -> None:
                for _ in range(total // 4096):
                    await trio.lowlevel.wait_writable(fd)
                    os.write(fd, b"x" * 4096)

            async with background(
                partial(center.converse, own),
                center.pump,
                partial(write, stdout),
                partial(write, stderr),
            ):
                # Both streams wait for room in the socket now.
                await trio.testing.wait_all_tasks_blocked(0.2)
                with trio.fail_after(PATIENCE):
                    while counts[hub.OUT] + counts[hub.ERR] < 2 * total:
                        message = await hub.receive(ours)
                        if message[:1] in counts:
                            counts[message[:1]] += len(message) - 1
                            # Neither stream waits for the end of the other.
                            assert abs(counts[hub.OUT] - counts[hub.ERR]) <= hub.BEHIND
    for fd in (stdout, stderr, err):
        os.close(fd)
    assert counts == {hub.OUT: total, hub.ERR: total, hub.CUT: 0}


async def test_a_member_and_the_hub_s_own_client_type_at_once(tmp_path: Path) -> None:
    with open_process() as (pipes, stdout, stdin):
        async with hub.open_hub(tmp_path, pipes, None):
            with member(tmp_path) as other:

                async def type_own() -> None:
                    for _ in range(20):
                        await pipes.write_stdin(b"a" * 4096)

                async def type_other() -> None:
                    for _ in range(20):
                        await hub.send(other, hub.INPUT + b"b" * 4096)

                typed = b""
                with trio.fail_after(PATIENCE):
                    async with background(type_own, type_other):
                        # Nothing is read yet, so both wait for room in stdin.
                        await trio.testing.wait_all_tasks_blocked(0.1)
                        while len(typed) < 40 * 4096:
                            await trio.lowlevel.wait_readable(stdin)
                            typed += os.read(stdin, 4096)
        os.close(stdout)
    assert typed.count(b"a") == typed.count(b"b") == 20 * 4096


async def test_a_client_is_resized_while_its_input_waits_for_the_hub(tmp_path: Path) -> None:
    client = _Client(
        cast("Task", None), Stdio(terminal=True), tmp_path, KeyFilter(b""), shim_pid=0
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setblocking(False)
    kinds = b""
    with ours, theirs:
        client.join(ours)

        async def type_on() -> None:
            for _ in range(200):
                await client.send_input(b"x" * 4096)

        async with background(type_on, client.send_sizes):
            await trio.testing.wait_all_tasks_blocked(0.1)
            with trio.fail_after(PATIENCE):  # a signal handler must not wait for the hub
                await client.resized()
            await trio.testing.wait_all_tasks_blocked(0.1)
            with trio.fail_after(PATIENCE):
                while kinds.count(hub.INPUT) < 200 or hub.HELLO not in kinds:
                    kinds += (await hub.receive(theirs))[:1]
    assert kinds.count(hub.HELLO) == 1


async def test_what_members_type_reaches_the_process_in_whole_pieces(tmp_path: Path) -> None:
    with open_process() as (pipes, stdout, stdin):
        async with hub.open_hub(tmp_path, pipes, None):
            with member(tmp_path) as one, member(tmp_path) as two:

                async def type_on(sock: socket.socket, text: bytes) -> None:
                    for _ in range(20):
                        await hub.send(sock, hub.INPUT + text * 4096)

                typed = b""
                with trio.fail_after(PATIENCE):
                    async with background(
                        partial(type_on, one, b"a"), partial(type_on, two, b"b")
                    ):
                        while len(typed) < 40 * 4096:
                            await trio.lowlevel.wait_readable(stdin)
                            typed += os.read(stdin, 4096)
        os.close(stdout)
    pieces = {typed[start : start + 4096] for start in range(0, len(typed), 4096)}
    assert pieces == {b"a" * 4096, b"b" * 4096}


async def test_the_terminal_has_the_size_of_who_was_active_last(tmp_path: Path) -> None:
    sizes = Sizes()
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(tmp_path, pipes, sizes.resize):
            with member(tmp_path, (80, 24)) as one:
                await until(lambda: sizes == [(80, 24)])
                with member(tmp_path, (100, 30)) as two:
                    await until(lambda: sizes[-1] == (100, 30))
                    await hub.send(one, hub.INPUT + b"x")
                    await until(lambda: sizes[-1] == (80, 24))
                    await hub.send(two, hub.hello((90, 20), time.monotonic(), fresh=False))
                    await until(lambda: sizes[-1] == (90, 20))
                await until(lambda: sizes[-1] == (80, 24))  # two has left
        os.close(stdout)


async def test_who_comes_late_has_the_screen_painted_again(tmp_path: Path) -> None:
    sizes = Sizes()
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(tmp_path, pipes, sizes.resize):
            with member(tmp_path, (80, 24), fresh=True):
                await until(lambda: len(sizes) == 2)
                assert sizes == [(80, 23), (80, 24)]
        os.close(stdout)


@pytest.mark.parametrize(
    "message", [b"?", b"h", b"h{", b"h[]", b'h{"size": 7}', b'h{"size": [1]}', b"\xff" * 1000]
)
async def test_a_strange_message_harms_nobody(tmp_path: Path, message: bytes) -> None:
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(tmp_path, pipes, None) as center:
            with member(tmp_path) as strange, member(tmp_path) as sane:
                await hub.send(strange, message)
                async with background(center.pump):
                    os.write(stdout, b"all is well")
                    assert await output_of(sane, 11) == b"all is well"
                    assert await output_of(strange, 11) == b"all is well"
        os.close(stdout)


async def test_members_hear_how_many_they_are(tmp_path: Path) -> None:
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(tmp_path, pipes, None):
            with member(tmp_path) as one:
                assert await kind_of(one, hub.NUMBER) == hub.NUMBER + b"1"
                with member(tmp_path):
                    assert await kind_of(one, hub.NUMBER) == hub.NUMBER + b"2"
                assert await kind_of(one, hub.NUMBER) == hub.NUMBER + b"1"
        os.close(stdout)


def test_the_lock_goes_to_one_and_is_free_after(tmp_path: Path) -> None:
    with hub.try_lock(tmp_path) as first:
        assert first
        with hub.try_lock(tmp_path) as second:
            assert not second
    with hub.try_lock(tmp_path) as third:
        assert third
    assert (tmp_path / hub.LOCK).stat().st_mode & 0o777 == 0o600


def test_without_a_directory_the_container_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has been deleted"), hub.try_lock(tmp_path / "none"):
        pass


async def test_a_dead_hub_s_socket_is_replaced_and_a_long_path_is_no_matter(
    tmp_path: Path,
) -> None:
    place = tmp_path / ("x" * 200)
    place.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        fd = os.open(place, os.O_PATH)
        dead.bind(f"/proc/self/fd/{fd}/attach.sock")
        os.close(fd)
    assert hub.call(place) is None
    with open_process() as (pipes, stdout, _):
        async with hub.open_hub(place, pipes, None):
            assert (place / "attach.sock").stat().st_mode & 0o777 == 0o600
            with member(place) as sock:
                await kind_of(sock, hub.NUMBER)
        os.close(stdout)
    assert list(place.iterdir()) == []


@given(st.binary(max_size=40))
def test_no_greeting_is_an_error(content: bytes) -> None:
    hub.read_hello(content)


def test_a_greeting_says_what_was_meant() -> None:
    said = hub.hello((80, 24), 1.5, fresh=True)
    assert said[:1] == hub.HELLO
    assert hub.read_hello(said[1:]) == ((80, 24), 1.5, True)
