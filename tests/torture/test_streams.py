"""The loop's own judgement: which missing lines a killed containerd had taken."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shim.linux import fifos
from tests.torture.streams import Log, Look, line, opens, peek

if TYPE_CHECKING:
    from pathlib import Path

LINES = 1000


def logged(tmp_path: Path, numbers: list[int], *looks: Look) -> Log:
    log = Log(tmp_path / "log", LINES, {"stdout": list(looks), "stderr": []})
    text = [f"2026-01-01T00:00:00Z stdout F {line('stdout', number)}\n" for number in numbers]
    log.path.write_text("".join(text))
    return log


def without(first: int, last: int) -> list[int]:
    return [number for number in range(LINES) if not first <= number <= last]


@pytest.mark.parametrize(
    ("looks", "taken"),
    [
        ([], False),
        ([Look(499, 500, 500)], False),  # all was unread
        ([Look(499, 510, 490)], True),
        ([Look(499, 505, 495)], False),  # some was unread
        ([Look(499, None, 0)], True),
        ([Look(10, None, 0)], False),  # more than it can have in hand
        ([Look(400, 450, 100), Look(400, None, 0)], False),  # seen unread, and nothing since
        ([Look(400, 450, 100), Look(499, None, 0)], True),  # the next one had begun to log them
        ([Look(600, None, 0)], False),  # later lines were logged
    ],
)
def test_lines_are_lost_unless_a_killed_manager_had_them(
    tmp_path: Path, looks: list[Look], taken: bool
) -> None:
    log = logged(tmp_path, without(500, 509), *looks)
    missing = list(range(500, 510))
    got_taken, got_lost = log.missing("stdout")
    assert (got_taken == missing) is taken
    assert sorted(got_taken + got_lost) == missing


@pytest.mark.parametrize("numbers", [[0, 1, 1, 2], [0, 2, 1]])
def test_lines_that_are_doubled_or_moved_are_a_fault(tmp_path: Path, numbers: list[int]) -> None:
    with pytest.raises(AssertionError, match="out of order"):
        logged(tmp_path, numbers).missing("stdout")


def test_a_look_leaves_everything_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = fifos.open_keep(str(tmp_path / "fifo"))
    text = "".join(line("stdout", number) + "\n" for number in range(400))
    os.write(fifo.number, text.encode())
    assert peek(tmp_path / "fifo") == text
    assert os.read(fifo.number, 1 << 20) == text.encode()
    fifo.close()
    assert peek(tmp_path / "none") == ""


def test_a_fifo_opens_while_it_has_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    keep = fifos.open_keep(str(tmp_path / "fifo"))
    assert opens(tmp_path / "fifo")
    keep.close()
    assert not opens(tmp_path / "fifo", 0.01)
