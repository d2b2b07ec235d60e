"""The ring and the few bytes in memory, against a model of what waits in them."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.hostfile import Output
from shim.linux import fifos
from shim.stdio.overflow import marker
from shim.stdio.spool import SMALL, FirstBytes, Overflow, Ring, ThreadedRing

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 10_000
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "fill", "give", "read"]), st.integers(1, 9000)),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_a_ring_gives_what_it_took_in_order_and_never_grows(steps: list[tuple[str, int]]) -> None:
    source_r, source_w = pipe()
    sink_r, sink_w = pipe()
    with tempfile.TemporaryFile() as file:
        ring = Ring(fifos.Fd(os.dup(file.fileno())), LIMIT)
        waiting, written, number = b"", b"", 0
        for kind, size in steps:
            data = bytes((number + i) % 251 for i in range(size))
            number += size
            if kind == "put" and ring.free:
                count = ring.put(data)
                assert count
                waiting += data[:count]
            elif kind == "fill" and ring.free:
                os.write(source_w.number, data)
                count = ring.fill(source_r)
                assert count
                waiting += data[:count]
                with suppress(BlockingIOError):
                    os.read(source_r.number, 1 << 16)
            elif kind == "give" and ring.used:
                with suppress(BlockingIOError):
                    count = ring.write_to(sink_w)
                    assert count
                    written, waiting = written + waiting[:count], waiting[count:]
            elif kind == "read" and written:
                got = os.read(sink_r.number, size)
                assert written.startswith(got)
                written = written[len(got) :]
            assert ring.used == len(waiting) == LIMIT - ring.free
            assert os.fstat(file.fileno()).st_size <= LIMIT
            if waiting:
                assert ring.last == waiting[-1:]
        ring.close()
    for fd in (source_r, source_w, sink_r, sink_w):
        fd.close()


def pipe() -> tuple[fifos.Fd, fifos.Fd]:
    reader, writer = fifos.open_pipe()
    os.set_blocking(reader.number, False)
    os.set_blocking(writer.number, False)
    return reader, writer


def test_pages_a_reader_still_holds_do_not_change_when_the_ring_comes_round() -> None:
    """Why nothing is spliced out of the file."""
    sink_r, sink_w = pipe()
    held_r, held_w = pipe()
    with tempfile.TemporaryFile() as file:
        ring = Ring(fifos.Fd(os.dup(file.fileno())), SMALL)
        ring.put(b"a" * SMALL)
        ring.write_to(sink_w)
        os.splice(sink_r.number, held_w.number, SMALL)  # as io.Copy in a Go program does
        ring.put(b"b" * SMALL)
        assert os.read(held_r.number, SMALL) == b"a" * SMALL
        ring.close()
    for fd in (sink_r, sink_w, held_r, held_w):
        fd.close()


def test_a_sealed_ring_takes_nothing_and_gives_what_it_has() -> None:
    sink_r, sink_w = pipe()
    with tempfile.TemporaryFile() as file:
        ring = Ring(fifos.Fd(os.dup(file.fileno())), LIMIT)
        ring.put(b"kept")
        ring.seal()
        assert ring.free == 0
        assert (ring.write_to(sink_w), ring.used) == (4, 0)
        ring.close()
    sink_r.close()
    sink_w.close()


def test_the_few_bytes_in_memory_are_taken_once() -> None:
    source_r, source_w = pipe()
    sink_r, sink_w = pipe()
    os.write(source_w.number, b"x" * SMALL + b"y")
    little = FirstBytes()
    assert little.fill(source_r) == SMALL
    assert (little.used, little.free, little.last) == (SMALL, 0, b"x")
    assert little.write_to(sink_w) == SMALL
    assert (little.used, little.free, little.last) == (0, 0, b"x")
    for fd in (source_r, source_w, sink_r, sink_w):
        fd.close()


def test_a_marker_is_a_line_of_its_own() -> None:
    line = b"[trio-shim: 12345 bytes of output dropped]\n"
    assert marker(12345, b"\n") == line
    assert marker(12345, b"x") == b"\n" + line
    assert marker(12345, b"") == b"\n" + line  # the byte before it is not known


@pytest.mark.parametrize(
    ("policy", "overflow"),
    [("block", None), ("drop", Overflow()), ("spool", Overflow(1 << 20, ("/srv", "/run/bundle")))],
)
def test_the_overflow_is_what_was_chosen(policy: str, overflow: Overflow | None) -> None:
    assert Overflow.of(Output(policy, 1 << 20, directory="/srv"), "/run/bundle") == overflow


def test_only_the_first_directory_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Overflow(LIMIT, (f"{tmp_path}/file/a", f"{tmp_path}/bundle")).open()
    assert not (tmp_path / "bundle").exists()
    store = Overflow(LIMIT, (f"{tmp_path}/a/b", f"{tmp_path}/bundle")).open()
    assert isinstance(store, Ring)
    store.close()
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("in_memory", "kind"), [(True, Ring), (False, ThreadedRing)])
def test_a_spool_keeps_bytes_and_leaves_no_fd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool, kind: type[Ring]
) -> None:
    monkeypatch.setattr("shim.stdio.spool.is_in_memory", lambda _: in_memory)
    fds = os.listdir("/proc/self/fd")
    store = Overflow(LIMIT, (str(tmp_path),)).open()
    assert type(store) is kind
    assert (store.put(b"kept"), store.used) == (4, 4)
    store.close()
    assert len(os.listdir("/proc/self/fd")) == len(fds)
