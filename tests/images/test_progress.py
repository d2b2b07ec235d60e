from __future__ import annotations

import os
import pty
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from shimctl.cli.progress import line
from shimctl.images import Step

SHOW = (
    "from shimctl.cli.progress import open_progress\n"
    "from shimctl.images import Step\n"
    "with open_progress() as show:\n"
    "    if show: show(Step('unpacking', 50, 100)); show(Step('writing to disk'))\n"
)


def test_a_bar_shows_the_part_that_is_done() -> None:
    shown = line(Step("unpacking", 1 << 20, 4 << 20), 60)
    assert shown == "unpacking [######                  ]  25%  1.0MiB of 4.0MiB"


def test_what_has_no_total_shows_how_much_it_was() -> None:
    assert line(Step("reading", 2048), 40) == "reading  2.0KiB"
    assert line(Step("writing to disk"), 40) == "writing to disk"


def test_where_a_bar_has_no_room_there_is_the_number() -> None:
    assert line(Step("unpacking", 1, 2), 30) == "unpacking  50%  1B of 2B"


@given(st.integers(0, 200), st.integers(0), st.integers(0), st.text(max_size=40))
def test_a_line_never_wraps(width: int, done: int, total: int, what: str) -> None:
    assert len(line(Step(what, done, total), width)) <= max(width - 1, 0)


def test_a_terminal_sees_it_and_is_clean_afterwards() -> None:
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", SHOW],
        stderr=theirs,
        timeout=60,
        check=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "unpacking [" in shown
    assert " 50%" in shown
    assert shown.endswith("writing to disk\r\x1b[K")
    assert "\n" not in shown


def test_nobody_but_a_terminal_sees_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, timeout=60, check=True
    )
    assert done.stdout + done.stderr == b""
