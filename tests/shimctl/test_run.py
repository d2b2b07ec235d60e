"""Real containers without a manager: shimctl as a process, a real shim, the real runc."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.shimctl.host import NAMESPACE, PATIENCE, Host, _needs, eventually, host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["_needs", "host"]
pytestmark = pytest.mark.e2e


def test_output_and_exit_code_are_the_containers_own(host: Host) -> None:
    bundle = host.bundle("sh", "-c", "echo out; echo err >&2; exit 7")
    before = sorted(bundle.rglob("*"))
    done = host.run(bundle)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert sorted(bundle.rglob("*")) == before
    assert host.left() == []


def test_stdin_reaches_the_container_and_ends(host: Host) -> None:
    text = "x" * 300_000 + "\n"
    done = host.run(host.bundle("cat"), stdin=text)
    assert (done.returncode, done.stdout == text, done.stderr) == (0, True, "")


def test_a_command_that_is_not_there_is_127_and_leaves_nothing(host: Host) -> None:
    done = host.run(host.bundle("nonsense"))
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.count("\n") == 1
    eventually(lambda: host.left() == [], host.left)


def test_the_bundle_may_be_named_by_a_relative_path(host: Host) -> None:
    bundle = host.bundle("true")
    relative = os.path.relpath(bundle)
    assert host.run(relative).returncode == 0


def test_a_detached_container_lives_on_and_is_deleted(host: Host) -> None:
    log = host.root / "out.log"
    bundle = host.bundle(
        "sh", "-c", "echo logged; trap 'exit 5' TERM; while :; do sleep 0.1; done"
    )
    done = host.run("-d", "--id", "det", "--log", log, bundle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "det\n", "")
    state = host.json("state", "-n", NAMESPACE, "de")
    assert (state["id"], state["status"], state["exit_status"]) == ("det", "running", None)
    [row] = host.json("ps", "-a", "-n", NAMESPACE)
    assert (row["id"], row["health"], row["managed"]) == ("det", "up", True)
    assert state["pid"] in {one["pid"] for one in host.json("pids", "-n", NAMESPACE, "det")}
    [stats] = host.json("stats", "--no-stream", "-n", NAMESPACE, "det")
    assert stats["stats"]["pids"] > 0
    refused = host.shimctl("delete", "-n", NAMESPACE, "det")
    assert refused.returncode == 125
    assert "is running; kill it first" in refused.stderr
    eventually(lambda: log.exists() and log.read_text() == "logged\n", lambda: "no log")
    assert host.shimctl("kill", "-n", NAMESPACE, "det").returncode == 0
    assert host.shimctl("wait", "-n", NAMESPACE, "det").returncode == 5
    assert host.json("delete", "-n", NAMESPACE, "det")["exit_status"] == 5
    assert host.json("ps", "-a", "-n", NAMESPACE) == []


def test_an_id_in_use_is_refused_and_its_owner_unharmed(host: Host) -> None:
    bundle = host.bundle("sleep", "100")
    assert host.run("-d", "--id", "twice", bundle).returncode == 0
    done = host.run("-d", "--id", "twice", bundle)
    assert (done.returncode, done.stdout) == (125, "")
    assert host.json("state", "-n", NAMESPACE, "twice")["status"] == "running"


def test_exec_is_a_process_of_its_own(host: Host) -> None:
    host.run("-d", "--id", "ex", host.bundle("sleep", "100"))
    run = ("exec", "-n", NAMESPACE)
    script = "echo $A; pwd; id -u; echo err >&2; exit 9"
    options = ("-e", "A=b", "--cwd", "/tmp", "--user", "3:4")
    done = host.shimctl(*run, *options, "ex", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (9, "b\n/tmp\n3\n", "err\n")
    assert host.shimctl(*run, "-i", "ex", "cat", stdin="in").stdout == "in"
    assert host.shimctl(*run, "ex", "cat", stdin="not given").stdout == ""
    assert host.shimctl(*run, "ex", "nonsense").returncode == 127
    assert host.shimctl(*run, "ex", "/tmp").returncode == 126
    assert len(host.json("pids", "-n", NAMESPACE, "ex")) == 1


def test_a_paused_container_says_so(host: Host) -> None:
    host.run("-d", "--id", "pp", host.bundle("sleep", "100"))
    assert host.shimctl("pause", "-n", NAMESPACE, "pp").returncode == 0
    assert host.json("state", "-n", NAMESPACE, "pp")["status"] == "paused"
    assert host.shimctl("resume", "-n", NAMESPACE, "pp").returncode == 0
    assert host.json("state", "-n", NAMESPACE, "pp")["status"] == "running"


def test_a_container_whose_shim_was_killed_can_be_deleted(host: Host) -> None:
    host.run("-d", "--id", "orphan", host.bundle("sleep", "100"))
    [row] = host.json("ps", "-a", "-n", NAMESPACE)
    os.kill(row["shim_pid"], signal.SIGKILL)
    eventually(
        lambda: host.json("ps", "-a", "-n", NAMESPACE)[0]["health"] == "dead", lambda: "still up"
    )
    assert host.json("delete", "-n", NAMESPACE, "-f", "orphan")["exit_status"] == 137
    assert not psutil.pid_exists(row["pid"]) or _zombie(row["pid"])


def test_a_delete_that_leaves_something_names_it_and_fails(host: Host) -> None:
    host.run("-d", "--id", "stays", host.bundle("sleep", "100"))
    [row] = host.json("ps", "-a", "-n", NAMESPACE)
    work = host.state / NAMESPACE / "stays"
    binary = (work / "shim-binary-path").read_text()
    (work / "shim-binary-path").write_text("/bin/false")
    os.kill(row["shim_pid"], signal.SIGKILL)
    eventually(
        lambda: host.json("ps", "-a", "-n", NAMESPACE)[0]["health"] == "dead", lambda: "still up"
    )
    done = host.shimctl("delete", "-n", NAMESPACE, "-f", "stays")
    assert done.returncode == 125
    assert f"these remain: processes {row['pid']}; cgroups /" in done.stderr
    assert work.is_dir()
    (work / "shim-binary-path").write_text(binary)
    assert host.json("delete", "-n", NAMESPACE, "-f", "stays")["exit_status"] == 137
    assert not work.exists()


def _zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_events_are_printed_in_the_order_of_a_life(host: Host) -> None:
    done = host.run("--events", host.bundle("true"))
    topics = [json.loads(line)["topic"] for line in done.stderr.splitlines()]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_a_listener_is_told_of_detached_containers_and_can_be_interrupted(host: Host) -> None:
    command = host.command("events", "--json", "-n", NAMESPACE)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listener:
        eventually((host.state / "events.sock").exists, lambda: "nobody listens")
        host.run("-d", "--id", "heard", host.bundle("sleep", "100"))
        assert listener.stdout
        topics = [json.loads(listener.stdout.readline())["topic"] for _ in range(2)]
        assert topics == ["/tasks/create", "/tasks/start"]
        host.shimctl("delete", "-f", "-n", NAMESPACE, "heard")
        topics = [json.loads(listener.stdout.readline())["topic"] for _ in range(2)]
        assert topics == ["/tasks/exit", "/tasks/delete"]
        listener.send_signal(signal.SIGINT)
        assert listener.communicate(timeout=PATIENCE) == (b"", b"")
    assert listener.returncode == 130


def test_waiting_can_be_interrupted_and_harms_nobody(host: Host) -> None:
    host.run("-d", "--id", "long", host.bundle("sleep", "100"))
    with subprocess.Popen(host.command("wait", "-n", NAMESPACE, "long")) as waiting:
        connected = psutil.Process(waiting.pid).net_connections
        # trio itself has two; the third is the connection to the shim.
        eventually(lambda: len(connected("unix")) > 2, lambda: "not connected")
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(PATIENCE) == 130
    assert host.json("state", "-n", NAMESPACE, "long")["status"] == "running"


def test_signals_go_to_the_container(host: Host) -> None:
    script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    with open_run(host, host.bundle("sh", "-c", script)) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE) == (b"caught\n", b"")
    assert process.returncode == 3


def test_the_third_interrupt_kills(host: Host) -> None:
    script = "trap 'echo no' INT; echo ready; while :; do sleep 0.1; done"
    with open_run(host, host.bundle("sh", "-c", script)) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"no\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 137


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_who_has_no_stdin_or_stdout_still_runs_containers(host: Host, closed: str) -> None:
    # The fifos of the container must not get the numbers of the missing fds.
    bundle = host.bundle("sh", "-c", "seq 1000; seq 1000 >&2; exit 7")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *host.run_command(bundle)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 7
    assert (done.stdout == b"") == (">&-" in closed.split())
    assert (done.stderr == b"") == ("2>&-" in closed.split())


def test_a_closed_pipe_ends_who_writes_into_it(host: Host) -> None:
    with open_run(host, host.bundle("yes")) as process:
        assert process.stdout
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(PATIENCE) in (137, 141)


@contextmanager
def open_run(host: Host, bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = host.run_command(bundle)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        except BaseException:
            process.kill()  # or leaving the block would wait for it
            raise


class Terminal:
    """A terminal with a program, and its output."""

    def __init__(self, command: list[str]) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(33, 77)
        self.before = termios.tcgetattr(self.theirs)
        self.shown = b""
        self.process = subprocess.Popen(
            command,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
        )

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 0.2)[0]:
                self.shown += os.read(self.ours, 4096)
        self.shown = self.shown.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("how", ["run", "exec"])
def test_a_terminal_is_passed_on_resized_and_restored(host: Host, how: str) -> None:
    if how == "run":
        bundle = host.bundle("sh", terminal=True)
        command = host.run_command(bundle)
    else:
        host.run("-d", "--id", "tty", host.bundle("sleep", "100"))
        command = host.command("exec", "-n", NAMESPACE, "-it", "tty", "sh")
    terminal = Terminal(command)
    try:
        terminal.expect(b"# ")
        terminal.type(b"stty size\r")
        terminal.expect(b"33 77")
        terminal.resize(20, 50)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.type(b"until stty size | grep '20 50'; do sleep 0.1; done; echo re''sized\r")
        terminal.expect(b"resized")
        terminal.type(b"sh -c 'echo sta\"\"rted; exec sleep 100'\r")
        terminal.expect(b"started")
        terminal.type(b"\x03")
        terminal.type(b"exit 5\r")
        assert terminal.process.wait(PATIENCE) == 5
        assert termios.tcgetattr(terminal.theirs) == terminal.before
    finally:
        terminal.close()
