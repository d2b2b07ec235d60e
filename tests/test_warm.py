"""A fork of a warm server equals a new interpreter in everything that a program can see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests import warm
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROBE = """
import atexit, gc, json, locale, os, resource, signal, sys, time
verb = sys.argv[1]
if verb == "echo":
    sys.stdout.write(sys.stdin.read())
    sys.exit("the end")
elif verb == "end":
    atexit.register(print, "at exit")
    sys.exit(77)
elif verb == "fail":
    raise ValueError("as it was told")
elif verb == "sleep":
    print("up", flush=True)
    time.sleep(1000)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
kept = ("Name", "Umask", "Uid", "Gid", "Groups", "Threads", "SigPnd", "SigBlk", "SigIgn", "SigCgt")
streams = (sys.stdin, sys.stdout, sys.stderr)
names = ("encoding", "errors", "line_buffering", "write_through", "name", "mode", "newlines")
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "main": [__name__, __file__, sys.modules["__main__"].__dict__ is globals()],
    "cwd": os.getcwd(),
    "environ": dict(os.environ),
    "shown": sorted(open("/proc/self/environ").read().rstrip("\\0").split("\\0")),
    "zone": time.tzname,
    "fds": [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")],
    "cmdline": open("/proc/self/cmdline").read().rstrip("\\0"),
    "status": {name: status[name] for name in kept},
    "ids": [os.getpgrp(), os.getsid(0), os.nice(0)],
    "limits": [resource.getrlimit(number) for number in range(16)],
    "cgroup": open("/proc/self/cgroup").read(),
    "locale": [locale.setlocale(locale.LC_ALL, None), sys.getfilesystemencoding()],
    "streams": [[repr(getattr(stream, name, None)) for name in names] for stream in streams],
    "seekable": [stream.seekable() for stream in streams],
    "handlers": [repr(signal.getsignal(number)) for number in range(1, 65)],
    "flags": repr(sys.flags),
    "collects": [gc.isenabled(), gc.get_threshold()],
}))
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Make the program ``probe``; return the variables that it is found with."""
    package = tmp_path / "modules/probe"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PROBE)
    monkeypatch.setattr(warm, "_servers", {})
    yield {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "modules")}
    warm.close()


def both(
    *argv: str, environ: dict[str, str], cwd: Path, stdin: str = ""
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``probe`` as a new interpreter, and warm twice: the first may not change the next."""
    new = subprocess.run(
        [sys.executable, "-m", "probe", *argv],
        input=stdin,
        cwd=cwd,
        env=environ,
        timeout=60 * PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )
    more: Any = {"stdin": stdin, "cwd": cwd, "env": environ, "timeout": 60 * PATIENCE}
    return [new, *(warm.run("probe", argv, **more) for _ in range(2))]


@pytest.mark.slow
def test_it_has_the_attributes_of_a_new_process(tmp_path: Path, environ: dict[str, str]) -> None:
    before = os.umask(0o027)
    try:
        done = both(
            "tell", "ä", "", environ=environ | {"TZ": "Asia/Tokyo", "A": "b"}, cwd=tmp_path
        )
    finally:
        os.umask(before)
    assert [one.stderr for one in done] == ["", "", ""]
    new, *forked = [json.loads(one.stdout) for one in done]
    assert forked == [new, new]
    assert (new["cwd"], new["status"]["Umask"].strip(), new["zone"][0]) == (
        str(tmp_path),
        "0027",
        "JST",
    )


def test_it_reads_writes_and_ends_as_a_new_process(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    for verb, text, code in (("echo", "a\r\nb" * 100_000, 1), ("fail", "", 1), ("end", "", 77)):
        new, *forked = both(verb, environ=environ, cwd=tmp_path, stdin=text)
        assert new.returncode == code
        assert [one.stdout for one in forked] == [new.stdout] * 2
        # The frames above the program's own are not the same.
        assert [one.stderr.splitlines()[-2:] for one in forked] == [
            new.stderr.splitlines()[-2:]
        ] * 2
        assert [one.returncode for one in forked] == [code] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_it(tmp_path: Path, environ: dict[str, str], number: int) -> None:
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    with open(read, "rb") as out:
        argv, fds = ["sleep"], (null, write, null)
        with warm.start("probe", argv, fds, cwd=tmp_path, env=environ) as process:
            os.close(write)
            assert out.readline() == b"up\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)
            assert process.poll() is None
            process.send_signal(number)
            code = process.wait(60 * PATIENCE)
            assert process.poll() == code
    os.close(null)
    assert code == -number


def test_one_that_does_not_end_is_killed(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run("probe", ["sleep"], cwd=tmp_path, env=environ, timeout=2)


def test_what_is_too_long_for_the_server_is_a_new_process(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    long = ["x" * 100_000, "y" * 100_000]
    done = warm.run("probe", ["tell", *long], cwd=tmp_path, env=environ, timeout=60 * PATIENCE)
    assert json.loads(done.stdout)["argv"][2:] == long


def test_a_started_one_has_the_streams_of_a_new_process() -> None:
    pipe = subprocess.PIPE
    streams = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": subprocess.STDOUT}
    with warm.Popen("shimctl", ["--nonesuch"], text=True, **streams) as process:  # type: ignore[arg-type] # each is an int
        said, none = process.communicate(timeout=60 * PATIENCE)
    assert (process.returncode, none, said.count("\n")) == (125, None, 1)
    with warm.Popen("shimctl", ["--help"], stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        rest, errors = process.communicate(timeout=60 * PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert (first + rest).startswith(b"Usage: ")
