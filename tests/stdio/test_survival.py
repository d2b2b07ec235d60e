"""A daemon is killed while it relays: no byte is lost, none comes twice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shim.stdio.streams import StdioSpec
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


@pytest.fixture
def fifos(tmp_path: Path) -> Path:
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    return tmp_path


RATES = pytest.mark.parametrize(
    ("script", "lines"), [(FAST, LINES), (SLOW, SLOW_LINES)], ids=["fast", "slow"]
)
KINDS = pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])


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


@KINDS
def test_stdin_reaches_the_process_and_ends(fifos: Path, *, terminal: bool) -> None:
    spec = StdioSpec(str(fifos / "in"), str(fifos / "out"), terminal=terminal)
    script = "i=0; while [ $i -lt 40 ]; do head -c 100000; sleep 0.04; i=$((i + 1)); done"
    with surviving(spec, script) as daemons:
        daemons.open_reader(spec.stdout)
        daemons.write(spec.stdin, LINES[:4_000_000])
        daemons.run_until(lambda: len(daemons.received) >= 4_000_000, every=OFTEN)
        assert bytes(daemons.received) == LINES[:4_000_000]
        assert daemons.kills > 5


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
