"""The launchers' conversation with a fork server; a test is the server and its child."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from shim.start import launcher
from shimctl.host import install
from tests.latesocket import late_pair

if TYPE_CHECKING:
    from pathlib import Path

# Calls ``receive`` of the native launcher on a socket as that of tests.latesocket.
NATIVE = """
#define _GNU_SOURCE
#include <sys/socket.h>
static ssize_t late_recvmsg(int sock, struct msghdr *message, int flags)
{
    static int is_late = 1;

    if (!is_late)
        return recvmsg(sock, message, flags);
    is_late = 0;
    message->msg_controllen = 0;
    return 0;
}
#define recvmsg late_recvmsg
#define main launcher_main
#include "launcher.c"
#undef main

int main(void)
{
    int pair[2], passed;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) || send(pair[1], "last", 4, 0) != 4)
        return 2;
    close(pair[1]);
    if (receive(pair[0], now() + 10000, getpid(), 0, &passed) != 4 || strcmp(text, "last"))
        return 1;
    return receive(pair[0], now() + 10000, getpid(), 0, &passed) == 0 ? 0 : 3;
}
"""


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


def test_the_native_launcher_returns_the_last_packet_before_the_end(tmp_path: Path) -> None:
    compiler = install.find_compiler()
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, program = tmp_path / "late.c", tmp_path / "late"
    source.write_text(NATIVE)
    names = ("VERSION", "PACKAGE", "PYTHON", "DIRECTORY", "CODE", "ALONE")
    defines = [f'-D{name}=""' for name in names]
    command = [compiler, "-w", f"-I{install.SOURCE.parent}", *defines]
    subprocess.run([*command, "-o", program, source], check=True)
    assert subprocess.run([program], check=False).returncode == 0
