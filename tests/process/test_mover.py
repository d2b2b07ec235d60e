"""A fork server keeps only daemons of its own user and namespaces."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shim.recovery.versions import WRITTEN, unreadable
from shim.start.mover import refusal
from tests.process.builds import ROOT

if TYPE_CHECKING:
    from tests.process.servers import Server

VERSIONS = json.dumps(WRITTEN)
# A process that shows the arguments of a daemon, and ends with its input.
PROGRAM = """
import os, sys
from shim.linux.libc import set_title
set_title(["shim", "-namespace", "x"])
os.setuid(int(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_versions_that_this_code_writes_can_be_read() -> None:
    assert unreadable(WRITTEN) == ""


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({**WRITTEN, "daemon": 99}, "cannot read version 99 of the daemon state"),
        ({**WRITTEN, "later": 1}, "cannot read a state of kind 'later'"),
        ({"daemon": WRITTEN["daemon"]}, "there is no"),
    ],
)
def test_other_versions_are_refused(versions: dict[str, int], reason: str) -> None:
    assert reason in unreadable(versions)


def test_a_process_that_is_no_daemon_is_refused() -> None:
    pid = os.getpid()
    own = os.pidfd_open(pid)
    parent = os.pidfd_open(os.getppid())
    try:
        assert refusal(pid, own, VERSIONS) == "it is not the daemon of a shim"
        assert refusal(pid, parent, VERSIONS) == "it sent the pidfd of another process"
        assert refusal(0, own, VERSIONS) == "it is in another pid namespace"
    finally:
        os.close(own)
        os.close(parent)


@pytest.mark.parametrize(
    ("prefix", "user", "reason"),
    [
        ([], 0, ""),
        (["unshare", "--mount"], 0, "it is in another mnt namespace"),
        (["unshare", "--net"], 0, "it is in another net namespace"),
        ([], 65534, "it is not the same user"),
    ],
)
def test_only_a_daemon_of_the_same_user_and_namespaces_is_kept(
    prefix: list[str], user: int, reason: str
) -> None:
    command = [*prefix, sys.executable, "-c", PROGRAM, str(user)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        pidfd = os.pidfd_open(pid)
        try:
            assert refusal(pid, pidfd, VERSIONS) == reason
            assert reason or "version 99" in refusal(pid, pidfd, '{"daemon": 99}')
            assert reason or "sent no versions" in refusal(pid, pidfd, "[")
        finally:
            os.close(pidfd)
            process.stdin.close()


async def test_a_request_of_another_program_changes_nothing(server: Server) -> None:
    await server.start(server.rig.bundle("c1", "true"))
    await server.wait_up()
    (path,) = server.sockets
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own = os.pidfd_open(os.getpid())
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        request = b"keep\0" + VERSIONS.encode()
        socket.send_fds(sock, [request], [theirs.fileno(), own])
        assert json.loads(sock.recv(4096)) == {"error": "it is not the daemon of a shim"}
        theirs.close()
        ours.settimeout(10)
        assert ours.recv(1) == b""  # the server has closed it
    os.close(own)
