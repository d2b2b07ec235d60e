"""`shimctl install`: the files that it writes, replaces and removes."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shim.errors import NotFoundError, ShimError
from shim.names import EXECUTABLE as NAME
from shim.start import identity, launcher
from shimctl.cli.shared import shared_files
from shimctl.host import install as installing
from shimctl.host.install import install, uninstall
from shimctl.host.interpreter import Interpreter, find_interpreter
from tests.process.servers import ROOT
from tests.shimctl.installed import files_in, run, shimctl

if TYPE_CHECKING:
    from pathlib import Path


def test_what_shimctl_installed_can_install_again_and_is_removed_whole(tmp_path: Path) -> None:
    assert shimctl("install", "--prefix", str(tmp_path)).returncode == 0
    again = run(str(tmp_path / "bin/shimctl"), "install", "--prefix", str(tmp_path))
    assert (again.returncode, again.stderr) == (0, "")
    programs = again.stdout.splitlines()[:2]
    assert programs == [str(tmp_path / "bin" / n) for n in (NAME, "shimctl")]
    assert run(str(tmp_path / "bin" / NAME), "-v").returncode == 0
    # And no scratch file.
    shared = {f"share/{name}" for name in shared_files()}
    assert files_in(tmp_path) == {f"bin/{NAME}", "bin/shimctl"} | shared
    for _ in range(2):  # removing nothing is fine
        assert shimctl("install", "--uninstall", "--prefix", str(tmp_path)).returncode == 0
        assert files_in(tmp_path) == set()


async def test_shimctl_stays_while_another_name_does(tmp_path: Path) -> None:
    other = "containerd-shim-other-v1"
    for name in (NAME, other):
        await install(tmp_path, name=name, native=False)
    uninstall(tmp_path)
    assert files_in(tmp_path) == {f"bin/{other}", "bin/shimctl"}
    uninstall(tmp_path, name=other)
    assert files_in(tmp_path) == set()


async def test_another_program_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / NAME
    other.write_text("#!/bin/sh\n")
    for more in ([], ["--uninstall"]):
        done = shimctl("install", "--prefix", str(tmp_path), *more)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert str(other) in done.stderr
    assert files_in(tmp_path) == {f"bin/{NAME}"}
    assert other.read_text() == "#!/bin/sh\n"


async def test_a_link_to_pips_script_is_replaced_and_the_script_is_not(tmp_path: Path) -> None:
    pips = tmp_path / "pips"
    pips.write_text("from shim.start.launcher import main\n")
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / NAME
    link.symlink_to(pips)
    with pytest.raises(ShimError, match="use the tool that installed it"):
        uninstall(tmp_path)
    await install(tmp_path, native=False)
    assert not link.is_symlink()
    assert pips.read_text() == "from shim.start.launcher import main\n"


@pytest.mark.parametrize("name", ["", "..", "a/b", "shimctl"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    done = shimctl("install", "--prefix", str(tmp_path), "--name", name)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("path", "compiler"), [("/nonexistent", ""), (os.environ["PATH"], "false")]
)
def test_without_a_working_compiler_there_is_the_script(
    tmp_path: Path, path: str, compiler: str
) -> None:
    arguments = ("install", "--prefix", str(tmp_path))
    done = shimctl(*arguments, "--native", PATH=path, CC=compiler)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert files_in(tmp_path) == set()
    done = shimctl(*arguments, PATH=path, CC=compiler)
    assert done.returncode == 0
    assert done.stderr.startswith("shimctl: cannot build the native launcher: ")
    assert (tmp_path / "bin" / NAME).read_bytes().startswith(b"#!")
    done = shimctl(*arguments, "--no-native", PATH=path, CC=compiler)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_wanted_native_launcher_that_cannot_be_built_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NotFoundError, match="no C compiler"):
        await install(tmp_path, native=True)


@pytest.mark.parametrize("directory", ["x" * 130, "with space", "it's \"q\" \\N $HOME ''' é"])
async def test_an_interpreter_no_first_line_can_name_runs_behind_a_shell(
    tmp_path: Path, directory: str
) -> None:
    found = await find_interpreter()
    deep = tmp_path / directory / "python"
    deep.parent.mkdir()
    deep.symlink_to(found.executable)
    program = tmp_path / "odd name"
    program.write_text(replace(found, executable=str(deep)).script("shim.start.launcher", "x"))
    program.chmod(0o755)
    assert program.read_text().startswith("#!/bin/sh\n") == (
        len(directory) > 9 or " " in directory
    )
    done = run(str(program), "-v")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("odd name:")


def test_directories_may_be_called_anything(tmp_path: Path) -> None:
    package = tmp_path / 'it\'s "odd" \\ é'
    package.mkdir()
    (package / "probe.py").write_text("def main(): return 7\n")
    odd = Interpreter(sys.executable, (str(package),), "", "")
    for text in (odd.script("probe", "x"), replace(odd, executable="/x y/z").script("probe", "x")):
        program = tmp_path / "program"
        program.write_text(text.replace("'/x y/z'", sys.executable))
        program.chmod(0o755)
        assert run(str(program)).returncode == 7


def test_the_source_of_the_native_launcher_is_where_it_is_looked_for() -> None:
    assert installing.SOURCE.is_file()
    assert installing.SOURCE.is_relative_to(ROOT / "shimctl")


def test_both_launchers_have_the_same_limits() -> None:
    source = (ROOT / "shimctl/host/native/launcher.c").read_text()
    pattern = r"^#define (\w+) \(?(\d+)(?: << (\d+)\))?$"
    defined = {name: rest for name, *rest in re.findall(pattern, source, re.MULTILINE)}
    number = {name: int(a) << int(b or 0) for name, (a, b) in defined.items()}
    assert number.pop("TICK") == launcher._TICK * 1000
    assert number.pop("KILL_TIMEOUT") == launcher._KILL_TIMEOUT * 1000
    assert number.pop("BUSY") == launcher.BUSY * 1000
    assert number.pop("STDIN_TIMEOUT") == launcher.STDIN_TIMEOUT * 1000
    assert number.pop("STDIN_LIMIT") == launcher.STDIN_LIMIT
    assert number.pop("MAX_REQUEST") == launcher._MAX_REQUEST
    assert number.pop("MAX_ANSWER") == launcher.MAX_ANSWER
    assert number.pop("DIRECTORY_MAX") == identity._DIRECTORY_MAX
    assert set(number) == {"MAX_WORDS"}, "compare the new limit"  # Python has no such limit
    rows = re.findall(r'\{"([-a-z]+)", (\d+), (\d+), (\d+), (\d+)\}', source)
    limits = launcher._HEARD_TIMEOUT, launcher._TAKEN_TIMEOUT, launcher.WORK, launcher.LIMIT
    assert {name: [int(number) / 1000 for number in row] for name, *row in rows} == {
        name: [limit[name] for limit in limits] for name in launcher.LIMIT
    }


def test_help_has_an_example() -> None:
    assert "\n  shimctl install --prefix /usr/local" in shimctl("install", "--help").stdout
