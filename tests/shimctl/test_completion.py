"""Completion: what is offered, and that bash, zsh and fish offer it on Tab."""

from __future__ import annotations

import argparse
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shimctl.cli.arguments import parser
from shimctl.cli.completion import SHELLS, complete, script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PATIENCE = 30  # s

# -- words in, words out ------------------------------------------------------------


def lookup(kind: str, given: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    inside = given.get("namespace", [""])[-1]
    for namespace, name in (("default", "redis"), ("default", "reader"), ("k8s.io", "web")):
        if kind == "namespace":
            yield namespace, ""
        elif kind == "id" and inside in ("", namespace):
            yield name, namespace
    if kind == "signal":
        yield from (("HUP", ""), ("TERM", ""))


def offered(*words: str) -> list[str]:
    return [one.word for one in complete(parser(), words, lookup)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pau"], ["pause"]),
        (["nonsense", ""], []),
        (["--vers"], ["--version"]),
        (["state", "re"], ["redis", "reader"]),
        (["state", "-n", "k8s.io", ""], ["web"]),
        (["state", "--namespace=k8s.io", ""], ["web"]),
        (["state", "-n", "k"], ["k8s.io"]),
        (["state", "redis", ""], []),
        (["stats", "redis", "w"], ["web"]),
        (["kill", "redis", "H"], ["HUP"]),
        (["kill", "-a", "redis", "H"], ["HUP"]),
        (["ps", "-o", ""], ["table", "wide", "json", "yaml"]),
        (["ps", "-oj", "--nam"], ["--namespace"]),
        (["ps", "--output", "w"], ["wide"]),
        (["ps", "--output=y"], ["--output=yaml"]),
        (["ps", "--nonsense=y"], []),
        (["ps", "--json=y"], []),
        (["exec", "-it", "re"], ["redis", "reader"]),
        (["exec", "-te", "A=b", "w"], ["web"]),
        (["exec", "redis", "--", "--us"], []),
        (["exec", "redis", "ls", "--us"], []),
        (["state", "--", "-"], []),
        (["run", "--log", ""], [":files"]),
        (["run", ""], [":files"]),
        (["ps", "--state", ""], [":directories"]),
        (["ps", "--state=/r"], [":directories"]),
        (["checkpoint", "redis", "--image-path", "/x", "--work"], ["--work-path"]),
        (["top", "--sort", "m"], ["memory"]),
        (["completion", "f"], ["fish"]),
        (["forkserver", "s"], ["status", "stop"]),
    ],
    ids=" ".join,
)
def test_what_could_come_next_is_offered(words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_a_new_line_is_offered_every_command() -> None:
    assert {"ps", "top", "inspect", "completion"} <= set(offered(""))
    assert offered() == offered("")


def test_an_option_that_was_given_is_not_offered_again_unless_it_may_be_repeated() -> None:
    assert "--namespace" in offered("ps", "--")
    assert "--namespace" not in offered("ps", "-n", "x", "--")
    assert "--state" in offered("ps", "--state", "/x", "--")


def test_a_hidden_command_is_not_offered() -> None:
    assert not [word for word in offered("") if word.startswith("_")]


@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from(["ps", "-n", "--", "exec", "-o"]))))
def test_whatever_was_typed_completion_does_not_fail(words: list[str]) -> None:
    current = words[-1] if words else ""
    for word in offered(*words):
        assert word.startswith((current, ":"))


def every_command() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


@pytest.mark.parametrize("command", every_command())
def test_every_option_of_every_command_is_offered(command: str) -> None:
    options = {
        name
        for action in every_command()[command]._actions
        for name in action.option_strings
        if name.startswith("--")
    }
    assert set(offered(command, "--")) == options


# -- the shells themselves ----------------------------------------------------------

shells = pytest.mark.e2e


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a shimctl on PATH, and containers that shimctl has directories of."""
    program = tmp_path / "bin/shimctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {REAL}\n")
    program.chmod(0o755)
    for namespace, name in (("ns1", "redis-long-name"), ("ns2", "web")):
        directory = tmp_path / "state" / namespace / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
    (tmp_path / "some-directory").mkdir()
    (tmp_path / "some-file").touch()
    for shell in SHELLS:
        (tmp_path / f"completion.{shell}").write_text(script(shell))
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
        "XDG_DATA_HOME": str(tmp_path / ".local"),
        "SHIMCTL_STATE": str(tmp_path / "state"),
        "TERM": "xterm",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def needs(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"needs {shell}; tests/run.sh installs it")
    return found


REAL = f'{sys.executable} -m shimctl "$@"'
WRITES_DOWN = """#!/bin/sh
case $1 in
    __complete) exec {real} ;;
    *) echo "$@" >{log}.new && mv {log}.new {log} ;;
esac
"""
START = {
    "bash": (["--norc", "--noprofile", "-i"], "PS1='> '"),
    "zsh": (["-f", "-i"], "PS1='> '; unsetopt PROMPT_SP; autoload -U compinit; compinit -u -D"),
    "fish": (["--no-config", "-i"], "function fish_prompt; echo -n '> '; end"),
}


class Typist:
    """Somebody in front of a shell."""

    def __init__(self, shell: str) -> None:
        flags, setup = START[shell]
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            # A shell wants to be in control of its terminal.
            ["setsid", "--ctty", "--wait", needs(shell), *flags],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.shown = b""
        self.type(f"{setup}; source completion.{shell}; echo re''ady\r")
        self.wait(lambda: b"ready" in self.shown)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for what comes of typing, and read what is shown meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 65536)

    def close(self) -> None:
        os.close(self.ours)  # which hangs up, and ends the shell
        self.process.wait(PATIENCE)


@shells
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_a_command_an_option_a_choice_and_an_id(shell: str, home: Path) -> None:
    typist = Typist(shell)
    try:
        # What was completed is run, and writes itself down.
        log = home / "log"
        (home / "bin/shimctl").write_text(WRITES_DOWN.format(real=REAL, log=log))
        typist.type("shimctl insp\t--outp\tya\tred\t\r")
        typist.wait(log.exists)
        assert log.read_text().split() == ["inspect", "--output", "yaml", "redis-long-name"]
    finally:
        typist.close()


@shells
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_a_file_where_one_is_wanted(shell: str, home: Path) -> None:
    typist = Typist(shell)
    try:
        log = home / "log"
        (home / "bin/shimctl").write_text(WRITES_DOWN.format(real=REAL, log=log))
        typist.type("shimctl ps --state some-d\t\r")
        typist.wait(log.exists)
        assert log.read_text().strip().rstrip("/") == "ps --state some-directory"
        log.unlink()
        typist.type("shimctl run --log some-f\t\r")
        typist.wait(log.exists)
        assert log.read_text().strip() == "run --log some-file"
    finally:
        typist.close()
