"""attach, exec and logs in real terminals, under our shim and the stock one."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.shimctl.place import PATIENCE, RUNTIMES, Place, open_place
from tests.shimctl.tmux import Tmux, open_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The config for a terminal in a container.
PTS = ["newinstance", "ptmxmode=0666", "mode=0620"]
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": PTS},
]
pytestmark = pytest.mark.e2e
FLOOD = "echo up; read go; yes err | head -n 300000 >&2 & yes out | head -n 300000; wait; exit 7"


@pytest.fixture(params=["ours", "go"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


@pytest.fixture
def tmux(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tmux]:
    for name in ("SHIMCTL_STATE", "PYTHONPATH"):
        monkeypatch.setenv(name, place.environ[name])
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # as in the shell of a user
    with open_tmux() as tmux:
        yield tmux


def line(place: Place, *argv: str | Path) -> str:
    return shlex.join(place.command(*argv))


def test_a_terminal_shows_both_streams_of_a_container_without_one(
    place: Place, tmux: Tmux
) -> None:
    place.made("run", "flood", "-i", place.bundle("sh", "-c", FLOOD))
    terminal = tmux.open()
    attached = terminal.begin(line(place, "attach", "flood"))
    terminal.expect("up\n")
    terminal.type("go\n")
    assert terminal.code(attached) == 7
    assert "Traceback" not in terminal.screen()


def test_a_client_gets_both_streams_whole(place: Place) -> None:
    place.made("run", "flood", "-i", place.bundle("sh", "-c", FLOOD))
    done = place.shimctl("attach", "flood", stdin="go\n")
    assert (done.returncode, len(done.stdout), len(done.stderr)) == (7, 1200003, 1200000)


def test_a_terminal_shows_a_log_in_the_order_of_arrival(place: Place, tmux: Tmux) -> None:
    script = "for i in 1 2 3 4 5; do echo $i.out; sleep 0.05; echo $i.err >&2; sleep 0.05; done"
    expected = [f"{n}.{stream}" for n in range(1, 6) for stream in ("out", "err")]
    place.made("run", "both", place.bundle("sh", "-c", script))
    for options in ([], ["-f"], ["-f", "--tail", "9"], ["--tail", "9", "-t"]):
        place.shimctl("wait", "both")
        terminal = tmux.open()
        assert terminal.command("clear; " + line(place, "logs", *options, "both")) == 0
        words = [word for word in terminal.screen().split() if re.fullmatch(r"\d\.\w+", word)]
        assert words == expected[len(expected) - len(words) :]
        assert len(words) == (9 if "--tail" in options else 10)


# A terminal needs a terminal


def test_input_that_is_no_terminal_is_refused_for_one(place: Place) -> None:
    bundle = place.bundle("sleep", "1000", mounts=MOUNTS)
    place.made("run", "idle", bundle)
    place.made("run", "tty", "-i", "-t", bundle)
    for argv in (
        ["exec", "-it", "idle", "echo", "never"],
        ["attach", "tty"],
        ["run", "-n", place.namespace, "--runtime", RUNTIMES[place.kind], "-i", "-t", bundle],
    ):
        done = place.shimctl(*argv, stdin="lost\n")
        assert (done.returncode, done.stdout) == (125, ""), done
        assert done.stderr.count("\n") == 1
        assert "the input device is not a TTY" in done.stderr
    assert [row["id"] for row in place.json("ps", "-n", place.namespace)] == ["idle", "tty"]
    assert place.json("inspect", "idle")["execs"] == []


def test_dev_null_is_refused_for_a_terminal_each_time_in_the_same_words(place: Place) -> None:
    bundle = place.bundle("sleep", "1000", mounts=MOUNTS)
    place.made("run", "idle", bundle)
    place.made("run", "tty", "-i", "-t", bundle)
    run = ["run", "-n", place.namespace, "--runtime", RUNTIMES[place.kind]]
    for argv in (["exec", "-it", "idle", "true"], ["attach", "tty"], [*run, "-it", bundle]):
        pipe = subprocess.PIPE
        many = [
            place.begun(
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(3)
        ]
        seen = {(one.communicate(timeout=PATIENCE)[0], one.returncode) for one in many}
        [(said, code)] = seen
        assert code == 125
        assert said.startswith("shimctl: the input device is not a TTY; ")


def test_a_terminal_without_input_needs_no_terminal(place: Place) -> None:
    """As `docker run -t` and `docker exec -t`: the input is not forwarded."""
    place.made("run", "idle", place.bundle("sleep", "1000", mounts=MOUNTS))
    assert place.done("exec", "-t", "idle", "echo", "said", stdin="lost") == "said\n"
    run = ["run", "-n", place.namespace, "--runtime", RUNTIMES[place.kind], "-t"]
    bundle = place.bundle("sh", "-c", "sleep 0.3; echo said", mounts=MOUNTS)
    assert place.done(*run, bundle, stdin="lost") == "said\n"
