from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shim.errors import InvalidError
from shimctl.cli import exit_code_for, parser
from shimctl.commands import signal_number

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = (
    *("ps", "state", "start", "kill", "wait", "exec", "delete"),
    *("pids", "stats", "pause", "resume", "events", "run"),
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIMCTL_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def shimctl(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shimctl", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = shimctl(command, "--help")
    assert done.returncode == 0
    assert re.search(rf"\n  shimctl {command}\b", done.stdout)


def test_help_loads_neither_trio_nor_protobuf() -> None:
    script = (
        "import sys, shimctl.cli\n"
        "shimctl.cli.parser().format_help()\n"
        "assert not {'trio', 'google.protobuf', 'psutil', 'asyncio'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_command_loads_asyncio() -> None:
    script = "import sys, shimctl.commands\nassert not {'asyncio', 'h2'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_library_has_what_it_announces() -> None:
    script = "import shimctl\nfor name in shimctl.__all__: assert getattr(shimctl, name), name"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["state"], ["ps", "--nonsense"]])
def test_a_wrong_command_line_is_our_failure_in_one_line(argv: list[str]) -> None:
    done = shimctl(*argv)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert "--help" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["state", "nobody-of-that-name"],
        ["exec", "nobody-of-that-name", "true"],
        ["exec", "nobody-of-that-name"],
        ["kill", "nobody-of-that-name", "NONSENSE"],
        ["delete", "-f", "nobody-of-that-name"],
        ["run", "/no/such/bundle", "--runtime", "/bin/true"],
        ["run", "/no/such/bundle", "--runtime", "io.containerd.none.v0"],
        ["run", "/no/such/bundle", "--id", "../x"],
        ["run", "/no/such/bundle", "--log", "x"],
    ],
)
def test_a_failure_is_one_line_and_125(argv: list[str], state: Path) -> None:
    done = shimctl(*argv)
    assert (done.returncode, done.stdout) == (125, "")
    assert re.fullmatch(r"shimctl: .+\n", done.stderr)
    assert not state.exists()


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "exit 0", "echo unix:///no/socket"])
def test_a_run_whose_shim_does_not_start_leaves_nothing(
    tmp_path: Path, state: Path, script: str
) -> None:
    shim = tmp_path / "shim"
    shim.write_text(f"#!/bin/sh\n{script}\n")
    shim.chmod(0o755)
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}, "process": {}}')
    before = sorted(os.listdir(tmp_path))
    done = shimctl("run", tmp_path, "--runtime", shim)
    assert done.returncode == 125
    assert re.fullmatch(r"shimctl: .+\n", done.stderr)
    assert list(state.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path != state) == before


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec failed: exec: "x": executable file not found in $PATH', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ('exec: "/tmp": permission denied', 126),
        ('exec: "/tmp": is a directory', 126),
        ("exec /x: exec format error", 126),
        ("no container 'x'; see `shimctl ps`", 125),
        ("permission denied", 125),
    ],
)
def test_a_command_that_cannot_run_exits_as_in_a_shell(message: str, code: int) -> None:
    assert exit_code_for(message) == code


@pytest.mark.parametrize(
    ("text", "number"), [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("term", 15), ("RTMIN+1", 35)]
)
def test_signals_are_read_as_people_write_them(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "999", "0", "-1", "NONSENSE", "TERM+x"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        signal_number(text)


def test_the_command_of_exec_keeps_its_own_flags() -> None:
    args = parser().parse_args(["exec", "-it", "redis", "ls", "-n", "--json"])
    assert args.args == ["ls", "-n", "--json"]
    assert (args.interactive, args.tty, args.json, args.id) == (True, True, False, "redis")
