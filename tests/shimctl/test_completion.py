"""Completion: the candidates, and that bash, zsh and fish offer them on Tab."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.exit import Exit
from shim.records import write_exit
from shimctl.cli.completion import SHELLS, completer, script
from tests.shimctl.commands import COMMANDS, options
from tests.shimctl.tmux import eventually, open_tmux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.shimctl.tmux import Terminal

ROOT = Path(__file__).parents[2]
PATIENCE = 30  # s

# -- words in, words out ------------------------------------------------------------


def add_container(state: Path, namespace: str, name: str) -> Path:
    directory = state / namespace / name
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture(autouse=True, scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Containers that shimctl has directories of; no other of this host has such a name."""
    state = tmp_path_factory.mktemp("state")
    for namespace, name in (("qz-one", "qz-reader"), ("qz-one", "qz-redis"), ("qz-two", "qz-web")):
        add_container(state, namespace, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIMCTL_STATE", str(state))
        yield state


def candidates(*words: str, shell: str = "fish") -> list[tuple[str, str, str]]:
    """Return the kind, the word and the help of each candidate for the last of ``words``."""
    *before, current = words or ("",)
    found = completer(shell).get_completions(before, current)
    return [(one.type, one.value, one.help or "") for one in found]


def offered(*words: str) -> list[str]:
    """Return the words; a kind of file is given as ``:file``."""
    return [word if kind == "plain" else f":{kind}" for kind, word, _ in candidates(*words)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pau"], ["pause"]),
        (["nonsense", ""], []),
        (["--vers"], ["--version"]),
        (["state", "qz-re"], ["qz-reader", "qz-redis"]),
        (["state", "-n", "qz-two", ""], ["qz-web"]),
        (["state", "--namespace=qz-two", ""], ["qz-web"]),
        (["state", "-n", "qz-t"], ["qz-two"]),
        (["state", "redis", ""], []),
        (["stats", "qz-redis", "qz-"], ["qz-reader", "qz-web"]),
        (["kill", "redis", "H"], ["HUP"]),
        (["kill", "-a", "redis", "H"], ["HUP"]),
        (["kill", "-s", "H"], ["HUP"]),
        (["kill", "--signal=h"], ["--signal=HUP"]),
        (["pause", "qz-redis", "qz-"], ["qz-reader", "qz-web"]),
        (["help", "pau"], ["pause"]),
        (["help", "images", "p"], ["prepare"]),
        (["images", "p"], ["prepare"]),
        (["ps", "-o", ""], ["table", "wide", "json", "yaml"]),
        (["ps", "-oj", "--nam"], ["--namespace"]),
        (["ps", "--output", "w"], ["wide"]),
        (["ps", "--output=y"], ["--output=yaml"]),
        (["ps", "--nonsense=y"], []),
        (["ps", "--json=y"], []),
        (["exec", "-it", "qz-re"], ["qz-reader", "qz-redis"]),
        (["exec", "-te", "A=b", "qz-w"], ["qz-web"]),
        (["exec", "redis", "--", "--us"], []),
        (["exec", "redis", "ls", "--us"], []),
        (["state", "--", "-"], []),
        (["run", "--log", ""], [":file"]),
        (["run", ""], [":file"]),
        (["ps", "--state", ""], [":dir"]),
        (["ps", "--state=/r"], [":dir"]),
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


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from(["ps", "-n", "--", "exec", "-o"]))))
def test_whatever_was_typed_completion_does_not_fail(words: list[str]) -> None:
    current = words[-1] if words else ""
    for word in offered(*words):
        assert word.startswith((current, ":"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_offered_with_its_help(command: str) -> None:
    long = {option for option in options(COMMANDS[command]) if option.startswith("--")}
    found = candidates(command, "--")
    assert {word for _, word, _ in found} == long
    assert all(help_ for _, _, help_ in found)


def test_an_id_is_offered_with_its_namespace_and_state(containers: Path) -> None:
    for name, exit_, pid in (
        ("over", 7, 0),
        ("alive", None, os.getpid()),
        ("gone", None, 1 << 22),
    ):
        bundle = add_container(containers, "qs", f"qs-{name}")
        if exit_ is not None:
            write_exit(str(bundle), Exit(1, exit_, 10**9))
        else:
            (bundle / "init.pid").write_text(str(pid))
    add_container(containers, "qs", "qs-new")
    assert [(word, help_) for _, word, help_ in candidates("state", "qs-")] == [
        ("qs-alive", "in qs, running"),
        ("qs-gone", "in qs, stopped"),
        ("qs-new", "in qs, created"),
        ("qs-over", "in qs, exited 7"),
    ]


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
        add_container(tmp_path / "state", namespace, name)
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
case $_SHIMCTL_COMPLETE in
    *complete) exec {real} ;;
    *) echo "$@" >{log}.new && mv {log}.new {log} ;;
esac
"""
START = {
    "bash": (["--norc", "--noprofile", "-i"], "PS1='> '"),
    "zsh": (["-f", "-i"], "PS1='> '; unsetopt PROMPT_SP; autoload -U compinit; compinit -u -D"),
    "fish": (["--no-config", "-i"], "function fish_prompt; echo -n '> '; end"),
}


class Typist:
    """A user at a shell."""

    def __init__(self, shell: str) -> None:
        flags, setup = START[shell]
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
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
        """Wait for the result of typing, and read the output meanwhile."""
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
        # The completed command is run, and records its arguments.
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


@shells
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_lists_several_ids_each_with_its_namespace_and_state(shell: str, home: Path) -> None:
    add_container(home / "state", "ns1", "qzcandidate-1")
    (add_container(home / "state", "ns2", "qzcandidate-2") / "init.pid").write_text(
        str(os.getpid())
    )
    typist = Typist(shell)
    try:
        # bash lists at the Tab after one that inserts nothing.
        typist.type("shimctl state qzcandidate-\t\t")
        typist.wait(lambda: b"in ns1, created" in typist.shown)
        typist.wait(lambda: b"in ns2, running" in typist.shown)
        # Neither description is inserted.
        log = home / "log"
        (home / "bin/shimctl").write_text(WRITES_DOWN.format(real=REAL, log=log))
        typist.type("\x15shimctl state qzcandidate-2\r")
        typist.wait(log.exists)
        assert log.read_text().split() == ["state", "qzcandidate-2"]
    finally:
        typist.close()


# -- bash, whose readline lists what it inserts ---------------------------------------


@pytest.fixture
def bash(home: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens a bash with completion and these settings of readline."""
    with open_tmux() as tmux:

        def open_bash(*settings: str, columns: int = 100) -> Terminal:
            terminal = tmux.open(columns)
            commands = ["source completion.bash", *(f"bind {shlex.quote(s)}" for s in settings)]
            assert terminal.command("; ".join(commands)) == 0
            (home / "bin/shimctl").write_text(WRITES_DOWN.format(real=REAL, log=home / "log"))
            return terminal

        yield open_bash


def written(home: Path, terminal: Terminal) -> list[str]:
    """Return the arguments of the command that was typed and run."""
    eventually((home / "log").exists, terminal.screen)
    return (home / "log").read_text().split()


AT_ONCE = "set show-all-if-ambiguous on"


@shells
@pytest.mark.parametrize("setting", [AT_ONCE, "set show-all-if-unmodified on"])
def test_bash_lists_descriptions_at_the_first_tab_and_inserts_none(
    setting: str, home: Path, bash: Callable[..., Terminal]
) -> None:
    for name in ("qzweb", "qzweb-database"):
        add_container(home / "state", "ns1", name)
    terminal = bash(setting, "set completion-ignore-case on")
    terminal.type("shimctl state qzweb\t")
    terminal.expect("qzweb           (in ns1, created)")
    terminal.expect("qzweb-database  (in ns1, created)")
    terminal.type("-d\t\n")
    assert written(home, terminal) == ["state", "qzweb-database"]


@shells
@pytest.mark.parametrize(
    ("setting", "key", "expected"),
    [
        ("TAB: menu-complete", "\t", ["qzmany-1"]),
        ("TAB: menu-complete", "\t\t", ["qzmany-2"]),
        (r'"\C-t": insert-completions', "\x14", ["qzmany-1", "qzmany-2"]),
    ],
    ids=["menu", "menu again", "insert"],
)
def test_bash_inserts_only_ids_where_it_inserts_several(
    setting: str, key: str, expected: list[str], home: Path, bash: Callable[..., Terminal]
) -> None:
    for name in ("qzmany-1", "qzmany-2"):
        add_container(home / "state", "ns1", name)
    terminal = bash(setting)
    terminal.type(f"shimctl state qzmany-{key}\n")
    assert written(home, terminal) == ["state", *expected]


@shells
def test_bash_inserts_no_description_of_ids_that_readline_takes_for_equal(
    home: Path, bash: Callable[..., Terminal]
) -> None:
    for name in ("qzsame-a", "qzsame-A"):
        add_container(home / "state", "ns1", name)
    add_container(home / "state", "ns2", "qzsame-a")
    terminal = bash(AT_ONCE, "set completion-ignore-case on")
    terminal.type("shimctl state qzs\t\n")
    assert written(home, terminal) in (["state", "qzsame-a"], ["state", "qzsame-A"])


@shells
def test_bash_cuts_descriptions_to_the_width_of_the_terminal(
    bash: Callable[..., Terminal],
) -> None:
    terminal = bash(AT_ONCE, columns=30)
    terminal.type("shimctl st\t")
    terminal.expect("stop   (")
    rows = [line for line in terminal.screen().splitlines() if line.startswith("sta")]
    assert len(rows) == 3
    assert all(len(row) <= 30 and row.endswith(")") for row in rows)
    assert any(row.endswith("...)") for row in rows)
