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
SLOW = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; done"
SLOW_LINES = b"".join(b"%d\n" % i for i in range(1, 20_001))
# Seconds between two kills; a daemon needs about 0.02 to go on.
OFTEN = (0.0, 0.06)


@pytest.fixture
def fifos(tmp_path: Path) -> Path:
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    return tmp_path


RATES = pytest.mark.parametrize(
    ("script", "lines"), [(f"seq {COUNT}", LINES), (SLOW, SLOW_LINES)], ids=["fast", "slow"]
)
KINDS = pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])


@RATES
@KINDS
def test_a_fifo_gets_every_byte_once(
    fifos: Path, script: str, lines: bytes, *, terminal: bool
) -> None:
    spec = StdioSpec(stdout=str(fifos / "out"), terminal=terminal)
    with surviving(spec, ["sh", "-c", script]) as daemons:
        daemons.wait_running()
        daemons.open_reader(spec.stdout)
        daemons.run_until(lambda: len(daemons.received) >= len(lines), every=OFTEN)
        daemons.exit()
        daemons.run_until(lambda: daemons.ended, every=OFTEN)
        assert bytes(daemons.received) == lines
        assert daemons.kills


@KINDS
def test_stdin_reaches_the_process_and_ends(fifos: Path, *, terminal: bool) -> None:
    spec = StdioSpec(str(fifos / "in"), str(fifos / "out"), terminal=terminal)
    with surviving(spec, ["head", "-c", str(len(LINES))]) as daemons:
        daemons.wait_running()
        daemons.open_reader(spec.stdout)
        daemons.write(spec.stdin, LINES)
        daemons.run_until(lambda: len(daemons.received) >= len(LINES), every=OFTEN)
        assert bytes(daemons.received) == LINES
        assert daemons.kills
