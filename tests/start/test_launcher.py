"""The launchers' conversation with a fork server; a test is the server and its child."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from shim.start import launcher
from shimctl.host import install
from tests.latesocket import late_pair
from tests.takencall import taken_call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Calls functions of the native launcher: ``receive`` on a socket as that of tests.latesocket,
# ``run_on_server`` with shorter limits, and ``main`` with a server that refuses connections.
NATIVE = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
static int is_late;
static ssize_t late_recvmsg(int sock, struct msghdr *message, int flags)
{
    if (!is_late)
        return recvmsg(sock, message, flags);
    is_late = 0;
    message->msg_controllen = 0;
    return 0;
}
static int print_offset(const char *path, char *const argv[])
{
    return lseek(STDIN_FILENO, 0, SEEK_CUR) == 3 ? exit(0), 0 : 1;
}
#define recvmsg late_recvmsg
#define execv print_offset
#define main launcher_main
#include "launcher.c"
#undef main

static int receive_late(void)
{
    int pair[2], passed;

    is_late = 1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) || send(pair[1], "last", 4, 0) != 4)
        return 2;
    close(pair[1]);
    if (receive(pair[0], now() + 10000, getpid(), 0, &passed) != 4 || strcmp(text, "last"))
        return 1;
    return receive(pair[0], now() + 10000, getpid(), 0, &passed) == 0 ? 0 : 3;
}

static int delete_without_server(void)
{
    char *argv[] = {"shim", "delete", NULL};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    unsigned long long code;

    identify(&code);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%010llx-%05llx",
             getenv("TRIO_SHIM_FORKSERVER_DIR"), folded(40), code);
    hash = BASIS;
    umask(077);
    if (bind(socket(AF_UNIX, SOCK_SEQPACKET, 0), (void *)&address, sizeof address))
        return 2;
    return launcher_main(2, argv);
}

int main(int argc, char **argv)
{
    char *start[] = {"shim", "start", NULL};
    struct action action = {"start", 900, 5000, 300};
    int status;

    if (argc == 1)
        return receive_late();
    if (argc == 2)
        return delete_without_server();
    action.limit = BUSY - atoi(argv[2]);
    status = run_on_server(argv[1], &action, now() + 500, 2, start);
    return status < 0 ? 42 : status;
}
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of ``NATIVE``."""
    compiler = install.find_compiler()
    if compiler is None:
        pytest.skip("there is no C compiler")
    directory = tmp_path_factory.mktemp("native")
    source, program = directory / "late.c", directory / "late"
    source.write_text(NATIVE)
    names = ("VERSION", "PACKAGE", "PYTHON", "DIRECTORY", "CODE", "ALONE")
    defines = [f'-D{name}=""' for name in names]
    command = [compiler, "-w", f"-I{install.SOURCE.parent}", *defines]
    subprocess.run([*command, "-o", program, source], check=True)
    return program


@pytest.mark.parametrize("is_late", [False, True])
def test_the_last_packet_before_the_end_is_returned(*, is_late: bool) -> None:
    """The kernel may report the end before the packet."""
    ours, theirs = late_pair()
    ours.is_late = is_late
    answer = launcher.encode_answer(0, b"output")
    deadline = time.monotonic() + 10
    with ours:
        with theirs:
            theirs.send(answer)
        assert launcher.receive(ours, deadline, os.getpid()) == (answer, -1)
        assert launcher.receive(ours, deadline, os.getpid()) == (b"", -1)


def test_the_native_launcher_returns_the_last_packet_before_the_end(native: Path) -> None:
    assert subprocess.run([native], check=False).returncode == 0


def test_the_native_launcher_leaves_the_offset_of_its_stdin_without_a_copy(native: Path) -> None:
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as stdin:
        stdin.write(b"abc")
        stdin.flush()
        environ = {"TRIO_SHIM_FORKSERVER_DIR": directory}
        done = subprocess.run([native, "delete"], stdin=stdin, env=environ, check=False)
    assert done.returncode == 0


def ending(seconds: float | None) -> Callable[[socket.socket], None]:
    """Return what a server does that closes the connection after ``seconds``.

    With None the caller closes it.
    """

    def wait(caller: socket.socket) -> None:
        assert caller.recv(16) == b"go"
        caller.settimeout(seconds)
        with suppress(TimeoutError):
            caller.recv(16)

    return wait


def call(native: Path | None, path: str, busy: float) -> tuple[int | None, str]:
    """Have the server at ``path`` run ``start`` with short limits; return status and error.

    ``busy`` are the seconds after the limit for a child that waits for a processor.
    """
    if native is not None:
        argv = [str(native), path, str(int(busy * 1000))]
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, check=False)
        return (None if done.returncode == 42 else done.returncode), done.stderr
    with (
        pytest.MonkeyPatch.context() as patch,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock,
    ):
        problems: list[str] = []
        patch.setitem(launcher.WORK, "start", 0.3)
        patch.setattr(launcher, "BUSY", launcher.LIMIT["start"] + busy)

        def fail(_: list[str], problem: str) -> int:
            problems.append(problem)
            return 1

        patch.setattr(launcher, "_fail", fail)
        end = time.monotonic() + 0.5
        status, _ = launcher._converse(sock, path, ["shim", "start"], end)
        return status, "".join(problems)


BUSY = "while :; do :; done"


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize(
    ("program", "busy", "ends", "status", "problem"),
    [
        (BUSY, 60, 0.6, None, ""),
        (
            BUSY,
            0.1,
            None,
            1,
            "no answer within 0 s; the machine has no free processor, try again later",
        ),
        ("exec sleep 1000", 0.1, None, 1, "no answer within 0 s; check the disk"),
    ],
    ids=["ends", "waits for a processor", "waits for a disk"],
)
def test_a_child_that_does_not_answer_in_time_is_killed(
    request: pytest.FixtureRequest,
    program: str,
    busy: float,
    ends: float | None,
    status: int | None,
    problem: str,
    *,
    is_native: bool,
) -> None:
    """If it ends, this process runs the call again; if it waits, the error has the cause."""
    native = request.getfixturevalue("native") if is_native else None
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/server"
        with taken_call(path, program, ending(ends)) as child:
            done, error = call(native, path, busy)
            assert child.wait(5) == -signal.SIGKILL
    assert (done, problem in error, bool(error)) == (status, True, bool(problem))
