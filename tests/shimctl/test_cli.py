from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shim.errors import (
    InvalidError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shim.version import VERSION
from shimctl.cli import commands
from shimctl.cli.app import SECTIONS
from shimctl.cli.output import colours
from shimctl.cli.parse import signal_number
from shimctl.cli.report import exit_code_for, hint, report
from tests.shimctl.commands import COMMANDS, parsed, verbs
from tests.shimctl.tool import called, command_line, shimctl


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIMCTL_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("form", [("{}", "--help"), ("{}", "-h"), ("help", "{}")], ids=" ".join)
def test_every_command_has_help_with_an_example(command: str, form: tuple[str, str]) -> None:
    done = called(*(word.format(command) for word in form))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"Example:\n  shimctl {command}\b", done.stdout)
    for one in verbs(COMMANDS[command]):
        assert one.help
        for parameter in one.params:
            assert getattr(parameter, "help", None), parameter


@pytest.mark.parametrize("argv", [[], ["help"], ["--help"], ["-h"]], ids=" ".join)
def test_help_lists_every_command_in_its_section(argv: list[str]) -> None:
    done = called(*argv)
    assert (done.returncode, done.stderr) == (0, "")
    for section, names in SECTIONS.items():
        listed = re.search(rf"(?ms)^{section}:\n(.+?)(?=^\S|\Z)", done.stdout)
        assert listed
        assert re.findall(r"(?m)^  (\w+) +\w", listed[1])[: len(names)] == list(names)
    assert "..." not in done.stdout.partition("Containers:")[2]  # no text is cut


def test_each_module_of_commands_is_one_command_of_a_section() -> None:
    modules = {path.stem for path in Path(commands.__path__[0]).glob("[a-z]*.py")}
    assert modules == set(COMMANDS)
    assert {name: command.name for name, command in COMMANDS.items()} == {n: n for n in COMMANDS}


def test_help_loads_neither_trio_nor_protobuf() -> None:
    script = (
        "import sys, shimctl.cli\n"
        "assert shimctl.cli.main([]) == 0\n"
        "slow = {'trio', 'google.protobuf', 'psutil', 'asyncio', 'yaml', 'rich', 'grpclib'}\n"
        "assert not slow & sys.modules.keys(), slow & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_only_the_named_command_is_imported() -> None:
    script = (
        "import sys, shimctl.cli\n"
        "assert shimctl.cli.main(['pause', 'nobody-of-that-name']) == 125\n"
        "package = 'shimctl.cli.commands.'\n"
        "loaded = [name for name in sys.modules if name.startswith(package)]\n"
        "assert loaded == [package + 'pause'], loaded\n"
        "assert not {'asyncio', 'h2', 'yaml', 'rich', 'argparse'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_version_is_printed_without_loading_click() -> None:
    script = (
        "import sys, shimctl.cli\n"
        "assert shimctl.cli.main(['--version']) == 0\n"
        "assert 'click' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout.decode() == f"shimctl {VERSION}\n"
    assert called("version").stdout == called("--version").stdout


def test_a_mistyped_command_or_option_is_answered_with_what_was_meant() -> None:
    assert "(did you mean pause" in called("puase").stderr
    assert "(did you mean --namespace?)" in called("ps", "--namespac", "x").stderr


@pytest.mark.parametrize(
    "argv", [["ps", "--na", "x"], ["run", "--nam", "x", "b"], ["kill", "--sig", "9", "x"]]
)
def test_no_option_is_taken_for_a_longer_one(argv: list[str]) -> None:
    done = called(*argv)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"no such option '{argv[1]}'" in done.stderr


def test_the_library_has_what_it_announces() -> None:
    script = "import shimctl\nfor name in shimctl.__all__: assert getattr(shimctl, name), name"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    "argv", [["help", "nonsense"], ["nonsense"], ["state"], ["ps", "--nonsense"]]
)
def test_a_wrong_command_line_is_our_failure_in_one_line(argv: list[str]) -> None:
    done = shimctl(*argv)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert "--help" in done.stderr


@pytest.mark.parametrize("command", ["run", "create"])
def test_only_what_is_required_is_said_to_be(command: str) -> None:
    said = called(command).stderr
    assert "BUNDLE" in said
    assert "COMMAND" not in said


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
    done = called(*argv)
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
        ('OCI runtime create failed: exec: "nonesuch": executable file not found in $PATH', 125),
        (
            "OCI runtime create failed: unable to retrieve OCI runtime error (open log.json: no "
            'such file or directory): exec: "nonesuch": executable file not found in $PATH',
            125,
        ),
        (
            "OCI runtime create failed: runc create failed: unable to start container process: "
            'exec: "x": executable file not found in $PATH',
            127,
        ),
        ("no container 'x'; see `shimctl ps`", 125),
        ("permission denied", 125),
    ],
)
def test_a_command_that_cannot_run_exits_as_in_a_shell(message: str, code: int) -> None:
    assert exit_code_for(message) == code


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("9", 9), ("KILL", 9), ("SIGKILL", 9), ("term", 15)),
        *(("RTMIN+1", 35), ("rtmin+3", 37), ("SIGRTMIN+30", 64)),
    ],
)
def test_signals_are_read_as_people_write_them(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "999", "0", "-1", "NONSENSE", "TERM+x", "RTMIN+31", "RTMIN+-1", "HUP+1 "]
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there is no signal"):
        signal_number(text)


def test_the_command_of_exec_keeps_its_own_flags() -> None:
    args = parsed("exec", "-it", "redis", "ls", "-n", "--json")
    assert args.args == ("ls", "-n", "--json")
    assert (args.interactive, args.tty, args.namespace, args.id_) == (True, True, "", "redis")


@pytest.mark.parametrize(
    "argv",
    [
        ["update", "x", "--memory", "12XB"],
        ["update", "x", "--memory", "-5"],
        ["update", "x", "--cpus", "nan"],
        ["update", "x", "--cpu-shares", "1"],
        ["update", "x", "--blkio-weight", "1001"],
        ["update", "x", "--cpuset-cpus", "all"],
        ["update", "x", "--pids-limit", "0"],
        ["top", "-d", "0"],
        ["top", "-i", "0"],
        ["top", "-i", "many"],
        ["top", "--sort", "taste"],
        ["ps", "-o", "xml"],
        ["ps", "superfluous"],
        ["state", "a", "b"],
        ["restore", "./bundle"],
        ["checkpoint", "x"],
        ["checkpoint", "x", "--image-path", "/x", "--manage-cgroups-mode", "some"],
        ["completion", "tcsh"],
        ["completion"],
        ["forkserver", "dance"],
        ["nonsense\x1b[2J\nsecond line"],
        ["ps", "second\nline"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_our_failure_in_one_line(argv: list[str]) -> None:
    done = called(*argv)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.removesuffix("\n").isprintable()
    assert re.search(r"see `shimctl( \w+)? --help`$", done.stderr)


def test_an_update_of_nothing_says_what_to_try() -> None:
    done = called("update", "x")
    assert done.returncode == 125
    assert "try --memory 512MiB" in done.stderr


def test_a_checkpoint_that_is_not_there_is_not_restored(tmp_path: Path, state: Path) -> None:
    done = called("restore", "--image-path", tmp_path / "none", tmp_path, "--runtime", "/bin/true")
    assert done.returncode == 125
    assert "there is no checkpoint in" in done.stderr
    assert not state.exists()


@pytest.mark.parametrize("missing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_who_starts_us_without_a_stdin_or_stdout_gets_no_traceback(missing: str) -> None:
    command = f'"{sys.executable}" -m shimctl ps {missing}'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [["ps"], ["completion", "bash"], ["version", "--json"]])
def test_a_reader_that_is_gone_ends_us_without_a_word(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    argv = command_line(*command)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(argv, stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("command", [["state", "x"], ["run"], ["create"]], ids=" ".join)
def test_who_is_not_root_is_told_so(tmp_path: Path, state: Path, command: list[str]) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}, "process": {}}')
    state.mkdir(mode=0o700)
    more = [] if command[0] == "state" else [str(tmp_path), "--runtime", "/bin/true"]
    script = (
        "import os, sys\n"
        "from shimctl.cli import main\n"
        "import shimctl.cli.commands.run, shimctl.cli.commands.create\n"
        "import shimctl.cli.commands.state, shimctl.cli.connected, shimctl.standalone.run\n"
        "import psutil, trio, shimctl.discover\n"
        "os.setgid(65534)\n"
        "os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, *command, *more],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert "try again as root" in done.stderr


def test_a_state_directory_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}, "process": {}}')
    monkeypatch.setenv("SHIMCTL_STATE", "/proc/none/state")
    for command in ("run", "create"):
        done = shimctl(command, tmp_path, "--runtime", "/bin/true")
        assert (done.returncode, done.stdout) == (125, "")
        assert re.fullmatch(r"shimctl: mkdir /proc/none[^\n]*\n", done.stderr)
    assert shimctl("ps").returncode == 0


def test_an_error_of_several_lines_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = InvalidError("criu failed: errno 3\nlog file: /x/dump.log\n; see /y\x1b[2J")
    assert report(error, "checkpoint", "redis") == 125
    assert capsys.readouterr().err == (
        "shimctl: criu failed: errno 3; log file: /x/dump.log; see /y\\x1b[2J\n"
    )


def test_of_several_containers_each_is_named_though_another_word_has_its_letters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ("no process listens on /s/0c4f; start it", "c4 is running; stop it"):
        report(WrongStateError(text), "upgrade", "c4", several=True)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "shimctl: c4: no process listens on /s/0c4f; start it"
    assert second == "shimctl: c4 is running; stop it"


def test_an_error_says_what_to_try() -> None:
    assert "`shimctl ps`" in hint(UnavailableError("gone"), "redis")
    assert "`shimctl state redis`" in hint(WrongStateError("it runs"), "redis")
    assert "`shimctl version redis`" in hint(UnsupportedError("no"), "redis")
    assert "again" in hint(TimedOutError("slow"), "redis")
    assert "space" in hint(OSError(errno.ENOSPC, "full"), "redis")
    assert hint(UnavailableError("gone; try this")) == ""


@pytest.mark.parametrize(
    ("environ", "terminal", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_are_for_terminals_that_have_them(
    environ: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert colours(terminal) is coloured
