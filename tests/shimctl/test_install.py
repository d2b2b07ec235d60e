"""The shim's executable in each of its forms: pip's script, ours, and the native launcher."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.api.introspection_pb2 import RuntimeInfo
from shim.api.task_pb2 import DeleteResponse
from shim.names import EXECUTABLE as NAME
from shimctl.host import install as installing
from shimctl.host.install import find_compiler, install
from shimctl.host.interpreter import find_interpreter
from tests.e2e.waiting import wait_until
from tests.process.attributes import IDENTITY, UNSUPPORTED, prefix
from tests.process.rig import wait_gone
from tests.process.servers import parent_of
from tests.shimctl.installed import files_in, run
from tests.shimctl.shims import Shims, open_shims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

HIJACK = "raise SystemExit('a module of the working directory was imported')\n"


@dataclass(frozen=True)
class Form:
    """One way to have the executable.  ``isolated`` ones do not listen to PYTHON*."""

    path: Path
    isolated: bool

    @property
    def command(self) -> tuple[str, ...]:
        return (str(self.path),)

    @property
    def environ(self) -> dict[str, str]:
        """An environment that breaks a Python that listens to it."""
        if not self.isolated:
            return {}
        nowhere = "/nonexistent"
        return {"PYTHONPATH": nowhere, "PYTHONHOME": nowhere, "PYTHONINSPECT": "1"}


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the two installed forms are; without a compiler both are the script."""
    directory = tmp_path_factory.mktemp("prefixes")
    for kind, native in (("script", False), ("native", True if find_compiler() else None)):
        trio.run(partial(install, directory / kind, native=native))
    return {kind: directory / kind for kind in ("script", "native")}


@pytest.fixture(params=["console", "script", "native"])
def form(request: pytest.FixtureRequest, prefixes: dict[str, Path]) -> Form:
    if request.param == "console":
        path = Path(sys.executable).with_name(NAME)
        if not path.exists():
            pytest.skip(f"the package is not installed: there is no {path}")
        return Form(path, isolated=False)
    return Form(prefixes[request.param] / "bin" / NAME, isolated=True)


# Both Python forms call one function; these tests are about what it does then.
each_launcher = pytest.mark.parametrize("form", ["script", "native"], indirect=True)


@pytest.fixture
async def shims(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shims]:
    async with open_shims(monkeypatch) as shims:
        yield shims


def bundles(shims: Shims, count: int) -> list[Path]:
    """Make bundles with modules in their directories that must not be imported."""
    made = [shims.rig.bundle(f"c{i}", "true") for i in range(count)]
    for bundle in made:
        for name in ("trio", "shim", "os", "site", "sitecustomize"):
            (bundle / f"{name}.py").write_text(HIJACK)
    return made


async def test_the_first_start_makes_the_server_of_all_daemons(shims: Shims, form: Form) -> None:
    cold, warm = bundles(shims, 2)
    first = await shims.start(cold, command=form.command, environ=form.environ)
    server = await shims.server()
    second = await shims.start(warm, command=form.command, environ=form.environ)
    assert parent_of(first) == parent_of(second) == server


async def test_delete_and_info_answer_the_same_cold_and_warm(shims: Shims, form: Form) -> None:
    (bundle,) = bundles(shims, 1)

    def ask() -> None:
        done = shims.run(bundle, "delete", command=form.command, environ=form.environ)
        assert (done.returncode, done.stderr) == (0, b"")
        assert DeleteResponse.FromString(done.stdout).exit_status == 137
        done = shims.run(bundle, "-info", command=form.command, environ=form.environ)
        assert (done.returncode, done.stderr) == (0, b"")
        assert RuntimeInfo.FromString(done.stdout).name == "io.containerd.trio.v2"

    ask()
    await shims.start(bundle, command=form.command, environ=form.environ)
    await shims.server()
    ask()


async def test_what_no_server_does_is_done_without_one(shims: Shims, form: Form) -> None:
    (bundle,) = bundles(shims, 1)
    done = shims.run(bundle, "-v", command=form.command, environ=form.environ)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith(f"{form.path.name}:\n  Version:")
    for words in (["dance"], []):
        done = shims.run(bundle, *words, command=form.command, environ=form.environ)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(f"{form.path.name}: ".encode())
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("how", ["copied", "linked"])
async def test_it_works_and_is_known_under_any_name(shims: Shims, form: Form, how: str) -> None:
    name = "containerd-shim-runc-v2"
    other = Form(shims.rig.root / name, form.isolated)
    if how == "copied":
        shutil.copy(form.path, other.path)
    else:
        other.path.symlink_to(form.path)
    first, second = bundles(shims, 2)
    daemons = [await shims.start(first, command=other.command, environ=other.environ)]
    server = await shims.server()
    daemons.append(await shims.start(second, command=other.command, environ=other.environ))
    assert parent_of(daemons[1]) == server
    for daemon in daemons:
        words = Path(f"/proc/{daemon}/cmdline").read_bytes().split(b"\0")
        assert words[0] == name.encode()
        assert Path(f"/proc/{daemon}/comm").read_text().strip() == name[:15]
    for action in ("start", "dance"):  # warm, and never warm
        done = shims.run(shims.rig.root, action, command=other.command, environ=other.environ)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{name}: ".encode())


@each_launcher
async def test_a_refusal_of_the_server_is_the_answer(shims: Shims, form: Form) -> None:
    (bundle,) = bundles(shims, 1)
    await shims.start(bundle, command=form.command, environ=form.environ)
    await shims.server()
    empty = shims.rig.root / "empty"
    empty.mkdir()
    done = shims.run(empty, "start", command=form.command, environ=form.environ)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"config.json" in done.stderr
    assert done.stderr.count(b"\n") == 1


@each_launcher
async def test_a_start_that_finds_a_killed_server_makes_another(shims: Shims, form: Form) -> None:
    first, second = bundles(shims, 2)
    await shims.start(first, command=form.command, environ=form.environ)
    killed = await shims.server()
    os.kill(killed, signal.SIGKILL)
    await wait_gone([killed])
    with log_of(second) as log:
        daemon = await shims.start(second, command=form.command, environ=form.environ)
        with pytest.raises(BlockingIOError):  # there is no warning
            os.read(log, 65536)
    server = await shims.server()
    assert server != killed
    assert parent_of(daemon) == server


@each_launcher
@pytest.mark.parametrize("what", ["directory", "socket", "user"])
async def test_a_server_that_is_not_to_be_trusted_is_not_asked(
    shims: Shims, form: Form, what: str
) -> None:
    first, second = bundles(shims, 2)
    await shims.start(first, command=form.command, environ=form.environ)
    server = await shims.server()
    (path,) = shims.directory.glob("[!.]*")  # without the lock file
    target = shims.directory if what == "directory" else path
    mode = target.stat().st_mode & 0o777
    if what == "user":
        os.chown(target, 65534, 65534)
    else:
        target.chmod(mode | 0o010)
    try:
        with log_of(second) as log:
            daemon = await shims.start(second, command=form.command, environ=form.environ)
            assert parent_of(daemon) != server
            assert os.read(log, 65536).count(b"the fork server is not used") == 1
    finally:
        os.chown(target, 0, 0)
        target.chmod(mode)


@each_launcher
async def test_switched_off_no_server_is_asked_or_left(shims: Shims, form: Form) -> None:
    first, second, third = bundles(shims, 3)
    off = {**form.environ, "TRIO_SHIM_FORKSERVER": "off"}
    await shims.start(first, command=form.command, environ=off)
    assert not shims.directory.exists()
    await shims.start(second, command=form.command, environ=form.environ)
    server = await shims.server()
    daemon = await shims.start(third, command=form.command, environ=off)
    assert parent_of(daemon) != server


@each_launcher
async def test_a_longer_request_than_any_managers_is_served_all_the_same(
    shims: Shims, form: Form
) -> None:
    first, second = bundles(shims, 2)
    await shims.start(first, command=form.command, environ=form.environ)
    await shims.server()
    for filler in (["-debug"] * 100, ["-publish-binary", "x" * 100_000]):
        command = (*form.command, *filler)
        done = shims.run(second, "delete", command=command, environ=form.environ)
        assert (done.returncode, done.stderr) == (0, b"")


@contextmanager
def log_of(bundle: Path) -> Iterator[int]:
    os.mkfifo(bundle / "log")
    fd = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


# The native launcher

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")


async def test_both_launchers_see_every_attribute_that_a_manager_hands_on(tmp_path: Path) -> None:
    interpreter = await find_interpreter()
    native = tmp_path / "native"
    native.write_bytes(await installing.build(interpreter, "-DPRINT_IDENTITY"))
    native.chmod(0o755)
    text = interpreter.code("shim.start.identity", function="identity", named=True)
    script = text.replace("sys.exit(identity())", "sys.stdout.write(identity())")
    seen = set()
    for name, attribute in {"none": "", **IDENTITY}.items():
        found = []
        for command in ([str(native)], [sys.executable, "-IS", "-c", script, "script"]):
            done = run(*prefix(attribute), *command, "start", TRIO_SHIM_FORKSERVER="on")
            if done.returncode == UNSUPPORTED:
                break
            assert (done.returncode, done.stderr) == (0, "")
            found.append(done.stdout.split("\n"))
        if not found:
            continue
        if name == "login":  # each has another session
            found = [[line for line in lines if not line.isdigit()] for lines in found]
        assert found[0] == found[1], name
        seen.add("\n".join(found[0]))
    assert len(seen) >= 10  # and no two of them were the same


@pytest.fixture(scope="module")
def printing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the two launchers as programs that print the path of the server's socket."""
    interpreter = trio.run(find_interpreter)
    directory = tmp_path_factory.mktemp("printing")
    native, script = directory / "native", directory / "script"
    native.write_bytes(trio.run(installing.build, interpreter, "-DPRINT_PATH"))
    text = interpreter.script("shim.start.launcher", "prints the path")
    text = text.replace(
        "import main\nsys.exit(main())", "import socket_path\nprint(socket_path())"
    )
    script.write_text(text)
    # The module's directory, pytest's for this run and for this user; not the ones above.
    for path in (native, script, directory, *directory.parents[:2]):
        path.chmod(0o755)
    return native, script


@needs_compiler
@pytest.mark.parametrize(
    "prefix",
    [
        (),
        ("env", "TRIO_SHIM_FORKSERVER_DIR=/nonexistent"),
        ("env", "TRIO_SHIM_FORKSERVER_DIR="),
        ("unshare", "--mount", "--uts", "--ipc", "--net"),
        ("setpriv", "--regid", "65534", "--clear-groups"),
        # Another user, with read access to the interpreter in any directory.
        (
            "setpriv",
            "--reuid",
            "65534",
            *(f"--{k}-caps=+dac_override" for k in ("inh", "ambient")),
        ),
        ("setpriv", "--no-new-privs", "--bounding-set", "-chown"),
        ("cgroup",),
    ],
    ids=" ".join,
)
def test_both_launchers_look_in_the_same_place(
    printing: tuple[Path, Path], prefix: tuple[str, ...]
) -> None:
    native, script = printing
    if prefix == ("cgroup",):
        prefix = ("sh", "-c", 'mkdir -p $G && echo $$ >$G/cgroup.procs && "$@"', "sh")
    group = other_group()

    try:
        # Both below one prefix: each unshare makes other namespaces.
        command = [*prefix, "sh", "-c", f"{native} start; {script}"]
        done = run(*command, G=str(group), TRIO_SHIM_FORKSERVER="on")
        assert (done.returncode, done.stderr) == (0, "")
        ours, theirs = done.stdout.split()
        assert ours == theirs
        assert len(Path(ours).name) == 16
    finally:
        if group.exists():
            wait_until("the group is empty", lambda: not (group / "cgroup.procs").read_text(), 10)
            group.rmdir()


@needs_compiler
@pytest.mark.parametrize("static", [True, False])
async def test_the_native_launcher_is_static_where_there_is_a_libc_to_link_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, static: bool
) -> None:
    compiler = tmp_path / "compiler"
    refusal = 'case "$*" in *-static*) echo cannot find -lc >&2; exit 1;; esac'
    real = find_compiler()
    compiler.write_text(f'#!/bin/sh\n{"" if static else refusal}\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert (await install(tmp_path)).native
    program = tmp_path / "bin" / NAME
    assert (b"/ld-linux" not in program.read_bytes()) == static
    done = run(str(program), "-v")
    assert (done.returncode, done.stderr) == (0, "")


def other_group() -> Path:
    unified = Path("/sys/fs/cgroup")
    pids = unified / "pids"
    return (pids if pids.is_dir() else unified) / f"trio-shim-test-{secrets.token_hex(4)}"


@needs_compiler
async def test_a_warm_start_runs_no_python(shims: Shims, prefixes: dict[str, Path]) -> None:
    interpreter = await find_interpreter()
    broken = shims.rig.root / NAME
    broken.write_bytes(await installing.build(replace(interpreter, path=("/nonexistent",))))
    broken.chmod(0o755)
    first, second = bundles(shims, 2)
    done = shims.run(first, "start", command=(str(broken),))
    assert (done.returncode, b"No module named 'shim'" in done.stderr) == (1, True)
    await shims.start(first, command=(str(prefixes["native"] / "bin" / NAME),))
    server = await shims.server()
    assert parent_of(await shims.start(second, command=(str(broken),))) == server


@needs_compiler
async def test_without_its_interpreter_it_says_what_to_do(tmp_path: Path) -> None:
    interpreter = await find_interpreter()
    orphan = tmp_path / "orphan"
    orphan.write_bytes(
        await installing.build(replace(interpreter, executable='/no/such "python\\é'))
    )
    orphan.chmod(0o755)
    done = subprocess.run([orphan, "-v"], capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert '/no/such "python\\é: No such file or directory' in done.stderr
    assert "shimctl install" in done.stderr


def test_shimctl_is_installed_beside_it(prefixes: dict[str, Path]) -> None:
    for directory in prefixes.values():
        assert files_in(directory) == {f"bin/{NAME}", "bin/shimctl"}
        done = run(str(directory / "bin/shimctl"), "ps", PYTHONPATH="/nonexistent")
        assert (done.returncode, done.stderr) == (0, "")
