from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import ExistsError, InvalidError, TimedOutError, UnavailableError
from shim.linux import libc
from shim.linux.sockets import (
    add_address,
    can_connect,
    connect,
    listen,
    remove_address,
    remove_bound,
    remove_dead,
    socket_address,
)
from tests.loops import turns
from tests.stopping import Stopped

if TYPE_CHECKING:
    from pathlib import Path

# Seconds; the end of a stopped process would be waited for without limit.
UNHINDERED = 10.0


def test_an_address_is_what_containerd_computes() -> None:
    digest = "12117510a54ae87cb9f59e68c4b6897783ff70cec968b5b5967a0a0cd503057e"
    address = socket_address("/run/containerd/containerd.sock", "default", "demo")
    assert address == f"unix:///run/containerd/s/{digest}"


@pytest.mark.parametrize(
    "spelling", ["/run//containerd/containerd.sock", "//run/containerd/x/../containerd.sock/."]
)
def test_an_address_does_not_depend_on_the_spelling_of_the_path(spelling: str) -> None:
    plain = socket_address("/run/containerd/containerd.sock", "default", "demo")
    assert socket_address(spelling, "default", "demo") == plain


def test_an_empty_part_of_an_address_is_dropped() -> None:
    assert socket_address("", "a", "b") == socket_address("a", "", "b")


def test_the_socket_and_its_directory_are_private(tmp_path: Path) -> None:
    with listen(f"unix://{tmp_path}/new/s"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "new/s").stat().st_mode & 0o777 == 0o600


def test_an_address_in_use_is_taken(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s"
    with listen(address):
        assert can_connect(address)
        with pytest.raises(ExistsError):
            listen(address)
        assert can_connect(address)


def test_an_address_with_a_full_backlog_is_taken(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s"
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    with listen(address, backlog=0):
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(f"{tmp_path}/s")
        with pytest.raises(ExistsError):
            listen(address)
    for sock in waiting:
        sock.close()


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s"
    listen(address).close()
    assert not can_connect(address)
    with listen(address):
        assert can_connect(address)


def test_something_else_than_a_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(InvalidError, match="not a socket"):
        listen(f"unix://{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_an_abstract_address_is_taken_once() -> None:
    address = f"shim-test-{os.getpid()}"
    with listen(address):
        assert can_connect(address)
        with pytest.raises(ExistsError):
            listen(address)
    assert not can_connect(address)


def test_a_path_as_long_as_the_kernel_takes_is_taken(tmp_path: Path) -> None:
    """A directory of 42 bytes, the longest containerd accepts, makes such paths."""
    address = f"unix://{tmp_path}/".ljust(len("unix://") + 107, "x")
    with listen(address):
        assert can_connect(address)


def test_a_path_too_long_for_managers_is_refused_with_advice() -> None:
    with pytest.raises(InvalidError, match="use a socket directory"):
        listen("unix:///" + "x" * 107)


def test_of_the_sockets_of_shims_only_a_dead_one_is_removed(tmp_path: Path) -> None:
    live, dead = (f"unix://{tmp_path}/{name}" for name in ("live", "dead"))
    (tmp_path / "file").write_text("precious")
    listen(dead).close()
    with listen(live):
        remove_dead(live)
        for _ in range(2):
            remove_dead(dead)
        with pytest.raises(InvalidError, match="not a socket"):
            remove_dead(f"unix://{tmp_path}/file")
        remove_dead(f"unix://{tmp_path}/gone/s")
        remove_dead("abstract")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "live"]


@pytest.mark.parametrize("dead", [False, True])
def test_a_starter_that_is_stopped_at_any_step_holds_up_no_other(
    tmp_path: Path, dead: bool
) -> None:
    """And one of the two listens: never both, never neither."""
    for step in range(1, 200):
        address = f"unix://{tmp_path}/{step}"
        if dead:
            listen(address).close()
        other = Stopped(partial(_listens, address), step, "linux/sockets.py")
        if other.ended:
            assert step > 30
            return
        ours = None
        began = time.monotonic()
        try:
            with suppress(ExistsError):
                ours = listen(address)
            assert time.monotonic() - began < UNHINDERED
            assert can_connect(address)
        finally:
            code = other.finish()
        assert code == (0 if ours is None else 1)
        if ours is not None:
            with ours:
                _assert_reached(ours, f"{tmp_path}/{step}")
        assert not list(tmp_path.glob(".*"))
    raise AssertionError("it never came to an end")


def _listens(address: str) -> int:
    try:
        listen(address)
    except ExistsError:
        return 1
    return 0


def _assert_reached(listener: socket.socket, path: str) -> None:
    listener.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()  # those that only looked
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        listener.accept()[0].close()


@pytest.mark.slow
def test_of_three_starters_that_meet_at_a_dead_socket_the_listening_one_stays(
    tmp_path: Path,
) -> None:
    """The first is stopped, the second listens, the first goes on, and the third comes."""
    meetings = 0
    pace = turns(5, 2)
    for first in range(20, 200, turns(3, 2)):
        for second in range(1 + first % pace, 100, pace):
            address = f"unix://{tmp_path}/{first}-{second}"
            listen(address).close()
            starter = Stopped(partial(_listens, address), first, "linux/sockets.py", again=second)
            if starter.ended:
                assert meetings > 40
                return
            try:
                ours = listen(address)
            except ExistsError:  # the first one had its name already
                starter.finish()
                break
            with ours:
                starter.go_on()
                done = starter.ended
                with pytest.raises(ExistsError):
                    listen(address)
                assert starter.finish() == 1
                _assert_reached(ours, f"{tmp_path}/{first}-{second}")
            assert not list(tmp_path.glob(".*"))
            meetings += 1
            if done:
                break
    raise AssertionError("it never came to an end")


def test_where_files_cannot_be_exchanged_a_dead_socket_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc, "_RENAME_EXCHANGE", 1 << 30)  # a flag that no kernel has
    address = f"unix://{tmp_path}/s"
    listen(address).close()
    with listen(address) as ours:
        _assert_reached(ours, f"{tmp_path}/s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_remover_that_is_stopped_at_any_step_removes_no_live_socket(tmp_path: Path) -> None:
    for step in range(1, 100):
        address = f"unix://{tmp_path}/{step}"
        listen(address).close()

        def remove(address: str = address) -> int:
            remove_dead(address)
            return 0

        other = Stopped(remove, step, "linux/sockets.py")
        if other.ended:
            assert step > 15
            return
        with listen(address) as ours:
            assert other.finish() == 0
            _assert_reached(ours, f"{tmp_path}/{step}")
        assert not list(tmp_path.glob(".*"))
    raise AssertionError("it never came to an end")


def test_a_directory_that_another_process_has_locked_is_used_at_once(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        began = time.monotonic()
        listen(f"unix://{tmp_path}/s").close()
        remove_dead(f"unix://{tmp_path}/s")
        assert time.monotonic() - began < UNHINDERED
        assert not (tmp_path / "s").exists()
    finally:
        os.close(fd)


@pytest.mark.slow
def test_of_many_starters_exactly_one_listens(tmp_path: Path) -> None:
    for round_ in range(60):
        address = f"unix://{tmp_path}/{round_}"
        if round_ % 2:
            listen(address).close()  # a dead one lies there
        start_r, start_w = os.pipe()
        done_r, done_w = os.pipe()
        pids = [os.fork() for _ in range(1)]
        while len(pids) < 4 and pids[-1]:
            pids.append(os.fork())
        if not pids[-1]:
            os.close(start_w)
            os.close(done_w)
            os.read(start_r, 1)  # the end of the pipe starts all at once
            try:
                sock = listen(address)
            except ExistsError:
                os._exit(1)
            except BaseException:
                os._exit(2)
            os.read(done_r, 1)
            sock.close()
            os._exit(0)
        os.close(start_r)
        os.close(done_r)
        os.close(start_w)
        # The losers exit; the process that listens waits for this one.
        codes = [_next_code(pids) for _ in range(3)]
        assert can_connect(address)
        os.close(done_w)
        codes.append(_next_code(pids))
        assert sorted(codes) == [0, 1, 1, 1]


def _next_code(pids: list[int]) -> int:
    """Wait for the next of ``pids``; other children are not the test's."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid in pids:
            return os.waitstatus_to_exitcode(status)


async def test_connecting_gives_a_stream(tmp_path: Path) -> None:
    with listen(f"unix://{tmp_path}/s") as listener:
        async with await connect(f"unix://{tmp_path}/s") as stream:
            peer, _ = listener.accept()
            with peer:
                await stream.send_all(b"hello")
                assert peer.recv(10) == b"hello"


async def test_connecting_to_nobody_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await connect(f"unix://{tmp_path}/s")


async def test_connecting_to_a_full_backlog_is_bounded(tmp_path: Path) -> None:
    with listen(f"unix://{tmp_path}/s", backlog=0):
        async with await connect(f"unix://{tmp_path}/s"):
            with trio.fail_after(5), pytest.raises(TimedOutError):
                await connect(f"unix://{tmp_path}/s", timeout=0.05)


def test_a_second_address_is_the_same_socket_and_goes_with_it(tmp_path: Path) -> None:
    first, second = (f"unix://{tmp_path}/{name}" for name in ("a", "b"))
    with closing(listen(first)) as listener:
        add_address(first, second)
        add_address(first, second)
        assert can_connect(second)
        with pytest.raises(ExistsError):
            listen(second)
        remove_address(first, second)
        assert not (tmp_path / "b").exists()
        add_address(first, second)
        remove_bound(listener, first)
    assert list(tmp_path.iterdir()) == []


def test_a_second_address_replaces_a_dead_socket_and_no_live_one(tmp_path: Path) -> None:
    first, second = (f"unix://{tmp_path}/{name}" for name in ("a", "b"))
    listen(second).close()
    with closing(listen(first)):
        add_address(first, second)
        assert can_connect(second)
        remove_address(first, second)
        with closing(listen(second)):
            with pytest.raises(ExistsError, match="another process listens"):
                add_address(first, second)
            remove_address(first, second)
            assert can_connect(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_dead_socket_goes_with_all_its_addresses(tmp_path: Path) -> None:
    first, second, other = (f"unix://{tmp_path}/{name}" for name in ("a", "b", "c"))
    with closing(listen(first)), closing(listen(other)):
        add_address(first, second)
        remove_dead(second)
        assert can_connect(first)
    with closing(listen(other)):
        remove_dead(second)
        assert [path.name for path in tmp_path.iterdir()] == ["c"]
