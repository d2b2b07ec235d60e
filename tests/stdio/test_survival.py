"""A daemon is killed while it relays: no byte is lost, none comes twice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shim.stdio import overflow
from shim.stdio.spool import Overflow
from shim.stdio.streams import StdioSpec
from tests.stdio.overflowing import MARKER, spool_in
from tests.stdio.survival import surviving

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 600_000
LINES = b"".join(b"%d\n" % i for i in range(1, COUNT + 1))
# In bursts, so that a fast machine needs some seconds, too.
FAST = """
i=0; while [ $i -lt 40 ]; do
    seq $((i * 15000 + 1)) $((i * 15000 + 15000)); i=$((i + 1)); sleep 0.04
done"""
SLOW_LINES = b"".join(b"%d\n" % i for i in range(1, 10_001))
SLOW = """
i=0; while [ $i -lt 10000 ]; do
    i=$((i + 1)); echo $i; [ $((i % 100)) != 0 ] || sleep 0.02
done"""
# Seconds between two kills; a daemon needs about 0.02 to go on.
OFTEN = (0.0, 0.06)
# For a daemon that has to find out that no client reads.
SOMETIMES = (0.0, 0.3)


@pytest.fixture
def fifos(tmp_path: Path) -> Path:
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    return tmp_path


RATES = pytest.mark.parametrize(
    ("script", "lines"), [(FAST, LINES), (SLOW, SLOW_LINES)], ids=["fast", "slow"]
)
KINDS = pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])


@pytest.mark.slow
@RATES
@KINDS
def test_a_fifo_gets_every_byte_once(
    fifos: Path, script: str, lines: bytes, *, terminal: bool
) -> None:
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    with surviving(spec, script) as daemons:
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: len(daemons.received) >= len(lines), every=OFTEN)
        daemons.exit()
        daemons.run_until(lambda: daemons.ended, every=OFTEN)
        assert bytes(daemons.received) == lines
        assert daemons.kills > 5


@pytest.mark.slow
@KINDS
def test_stdin_reaches_the_process_and_ends(fifos: Path, *, terminal: bool) -> None:
    spec = StdioSpec(str(fifos / "in"), str(fifos / "out"), terminal=terminal)
    script = "i=0; while [ $i -lt 40 ]; do head -c 100000; sleep 0.04; i=$((i + 1)); done"
    with surviving(spec, script) as daemons:
        daemons.open_reader(spec.stdout)
        daemons.open_writer(spec.stdin)
        daemons.write(LINES[:4_000_000])
        daemons.run_until(lambda: len(daemons.received) >= 4_000_000, every=OFTEN)
        assert bytes(daemons.received) == LINES[:4_000_000]
        assert daemons.kills > 5


@pytest.mark.slow
@RATES
@KINDS
def test_a_file_gets_every_byte_once(
    fifos: Path, script: str, lines: bytes, *, terminal: bool
) -> None:
    path = fifos / "log"
    with surviving(StdioSpec(stdout=f"file://{path}", terminal=terminal), script) as daemons:
        daemons.run_until(lambda: path.exists() and path.stat().st_size >= len(lines), every=OFTEN)
        daemons.exit()
        daemons.drain()
        assert path.read_bytes() == lines
        assert daemons.kills > 5


@pytest.mark.slow
@KINDS
def test_a_logging_program_gets_every_byte_once_and_ends(fifos: Path, *, terminal: bool) -> None:
    path = fifos / "log"
    logger = fifos / "logger"
    logger.write_text(f"#!/bin/sh\nexec 5>&-\ncat <&3 >{path}\ncat <&4\necho end >>{path}\n")
    logger.chmod(0o755)
    spec = StdioSpec(stdout=f"binary://{logger}", terminal=terminal)
    with surviving(spec, FAST) as daemons:
        daemons.run_until(lambda: path.exists() and path.stat().st_size >= len(LINES), every=OFTEN)
        assert daemons.kills > 5
    assert path.read_bytes() == LINES + b"end\n"


def add_dropped(received: bytes, data: bytes) -> int:
    """Check the parts of ``data`` between markers; return how many bytes these and the
    dropped ones are.
    """
    positions = {0}
    *parts, last = MARKER.split(received)
    for part, dropped in zip(parts[::2], parts[1::2], strict=True):
        # The line before a marker may have been ended by the marker only.
        positions = {
            position + len(kept) + int(dropped)
            for position in positions
            for kept in (part, part[:-1])
            if data.startswith(kept, position)
        }
    ends = {position + len(last) for position in positions if data.startswith(last, position)}
    assert ends
    return len(data) if len(data) in ends else min(ends)


@pytest.mark.slow
@KINDS
def test_spooled_output_comes_whole(
    fifos: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(overflow, "AWAY_AFTER", 0.01)
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    with surviving(spec, f"{FAST}\n touch {fifos}/end", spool_in(fifos)) as daemons:
        daemons.run_until(lambda: (fifos / "end").exists() and daemons.kills > 3, every=SOMETIMES)
        daemons.exit()
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: daemons.ended, every=SOMETIMES)
        assert bytes(daemons.received) == LINES


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100_000], ids=["drop", "spool"])
@KINDS
def test_dropped_output_is_counted_exactly(
    fifos: Path, monkeypatch: pytest.MonkeyPatch, limit: int, *, terminal: bool
) -> None:
    monkeypatch.setattr(overflow, "AWAY_AFTER", 0.01)
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    policy = spool_in(fifos, limit) if limit else Overflow()
    with surviving(spec, f"{FAST}\n touch {fifos}/end", policy) as daemons:
        daemons.run_until(lambda: (fifos / "end").exists() and daemons.kills > 3, every=SOMETIMES)
        daemons.exit()
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: daemons.ended, every=SOMETIMES)
        assert add_dropped(bytes(daemons.received), LINES) == len(LINES)


@KINDS
def test_a_late_reader_gets_the_output_and_its_end(fifos: Path, *, terminal: bool) -> None:
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    with surviving(spec, "seq 1000") as daemons:
        daemons.exit()
        daemons.run_until(lambda: "stdout-pipe" not in daemons.kept)
        for _ in range(3):
            daemons.replace()
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: daemons.ended)
        assert bytes(daemons.received) == b"".join(b"%d\n" % i for i in range(1, 1001))


@KINDS
def test_a_reader_that_went_away_before_the_kill_can_come_back(
    fifos: Path, *, terminal: bool
) -> None:
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    with surviving(
        spec, f"echo one; while [ ! -e {fifos}/go ]; do sleep 0.01; done; echo two"
    ) as daemons:
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: daemons.received == b"one\n")
        daemons.close_reader()
        daemons.replace()
        (fifos / "go").touch()
        daemons.exit()
        daemons.replace()
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: daemons.ended)
        assert daemons.received == b"one\ntwo\n"


def test_an_end_of_stdin_before_the_kill_reaches_the_process(fifos: Path) -> None:
    spec = StdioSpec(str(fifos / "in"), str(fifos / "out"))
    with surviving(spec, "cat; echo end") as daemons:
        daemons.open_reader(spec.stdout)
        daemons.open_writer(spec.stdin)
        daemons.call("close_stdin")
        daemons.run_until(lambda: "stdin-keeper" not in daemons.kept)
        daemons.replace()
        daemons.write(b"input\n")
        daemons.run_until(lambda: daemons.ended)
        assert daemons.received == b"input\nend\n"


def test_an_end_of_stdin_after_the_kill_hangs_a_terminal_up(fifos: Path) -> None:
    spec = StdioSpec(str(fifos / "in"), str(fifos / "out"), terminal=True)
    with surviving(spec, "head -n 1; sleep 60") as daemons:
        daemons.open_reader(spec.stdout)
        daemons.replace()
        daemons.open_writer(spec.stdin)
        daemons.call("close_stdin")
        daemons.run_until(lambda: "stdin-keeper" not in daemons.kept)
        daemons.replace()
        daemons.begin_write(b"input\n")
        daemons.run_until(lambda: daemons.received == b"input\n")
        daemons.close_writer()
        daemons.run_until(lambda: daemons.ended)
        assert daemons.received == b"input\n"


@KINDS
def test_a_kill_before_the_relays_run_loses_nothing(fifos: Path, *, terminal: bool) -> None:
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    with surviving(spec, "seq 100", paused=True) as daemons:
        daemons.open_reader(spec.stdout)
        daemons.replace()
        daemons.exit()
        daemons.run_until(lambda: daemons.ended)
        assert bytes(daemons.received) == b"".join(b"%d\n" % i for i in range(1, 101))


def test_a_daemon_that_closes_the_stdio_leaves_nothing_with_the_keeper(fifos: Path) -> None:
    spec = StdioSpec(str(fifos / "in"), str(fifos / "out"), str(fifos / "err"))
    with surviving(spec, "sleep 60") as daemons:
        assert daemons.kept == {
            *("stdin", "stdin-keeper", "stdin-pipe"),
            *("stdout", "stdout-pipe", "stderr", "stderr-pipe"),
        }
        daemons.replace()
    assert not daemons.kept
