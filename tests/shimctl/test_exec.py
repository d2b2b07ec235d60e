"""exec with docker's options, under our shim and the stock one."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.shimctl.place import Place, eventually
from tests.shimctl.test_attach import MOUNTS, place, tmux

if TYPE_CHECKING:
    from tests.shimctl.tmux import Tmux

__all__ = ["place", "tmux"]
pytestmark = pytest.mark.e2e
PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:33:34:Web:/:/bin/sh\n"
GROUP = "root:x:0:\nweb:x:34:\nextra:x:50:root,web\n"
IDS = "echo $(id -u) $(id -g) $(id -G)"


def idle(place: Place, **changes: Any) -> Path:
    """Run the container ``idle`` with the working directory /tmp; return its rootfs."""
    bundle = place.bundle("sleep", "1000", mounts=MOUNTS)
    file = bundle / "config.json"
    text = file.read_text().replace('"cwd": "/"', '"cwd": "/tmp"')
    file.write_text(text)
    etc = bundle / "rootfs/etc"
    etc.mkdir()
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    place.made("run", "idle", bundle, **changes)
    return bundle / "rootfs"


def test_a_user_is_named_as_in_the_container(place: Place) -> None:
    idle(place)
    expected = {
        "web": "33 34 34 50\n",
        "web:extra": "33 50 50\n",
        "33": "33 34 34 50\n",
        "7": "7 0 0\n",
        "7:8": "7 8 8\n",
    }
    found = {user: place.done("exec", "-u", user, "idle", "sh", "-c", IDS) for user in expected}
    assert found == expected


def test_the_users_are_those_of_the_running_container_and_of_no_link(place: Place) -> None:
    rootfs = idle(place)
    (rootfs / "etc/passwd").write_text(PASSWD + "late:x:40:40::/:/bin/sh\n")
    assert place.done("exec", "-u", "late", "idle", "id", "-u") == "40\n"
    outside = place.root / "passwd"
    outside.write_text("evil:x:0:0::/:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    for target in (f"../../../../../../../..{outside}", f"/proc/1/root{outside}", str(outside)):
        (rootfs / "etc/passwd").unlink(missing_ok=True)
        (rootfs / "etc/passwd").symlink_to(target)
        done = place.shimctl("exec", "-u", "evil", "idle", "id")
        assert (done.returncode, done.stdout) == (125, "")
        assert "the container has no user evil" in done.stderr


def test_the_working_directory_and_the_variables(place: Place) -> None:
    idle(place)
    assert place.done("exec", "idle", "pwd") == "/tmp\n"
    assert place.done("exec", "-w", "/bin", "idle", "pwd") == "/bin\n"
    assert place.done("exec", "--cwd", "/bin", "idle", "pwd") == "/bin\n"
    file = place.root / "variables"
    file.write_text("# comment\nA=file\nB=two words\nHOME\n")
    options: list[str | Path] = [
        "-e",
        "A=1",
        "-e",
        "PYTHONPATH",
        "-e",
        "NOT_SET",
        "--env-file",
        file,
    ]
    shown = place.done("exec", *options, "idle", "env")
    assert set(shown.splitlines()) >= {
        "A=1",
        "B=two words",
        "MARK=yes",
        f"HOME={os.environ['HOME']}",
        f"PYTHONPATH={place.environ['PYTHONPATH']}",
    }
    assert "NOT_SET" not in shown
    done = place.shimctl("exec", "--env-file", place.root / "none", "idle", "env")
    assert (done.returncode, done.stdout) == (125, "")
    assert re.fullmatch(r"shimctl: cannot read .*none: No such file or directory\n", done.stderr)


def test_a_detached_exec_is_listed_and_ended(place: Place) -> None:
    rootfs = idle(place)
    exec_id = place.done(
        "exec", "-d", "idle", "sh", "-c", "echo x > /done; exec sleep 1000"
    ).strip()
    eventually((rootfs / "done").exists)
    [found] = place.json("inspect", "idle")["execs"]
    assert (found["exec_id"], found["status"]) == (exec_id, "running")
    for wrong in ("exec-none", exec_id[:-1]):
        done = place.shimctl("exec", "--kill", wrong, "idle")
        assert (done.returncode, done.stdout) == (125, "")
        assert f"its running execs: {exec_id}\n" in done.stderr
    assert place.done("exec", "--kill", exec_id, "idle") == f"{exec_id}\n"
    assert place.json("inspect", "idle")["execs"] == []
    assert len(place.json("pids", "idle")) == 1
    for argv in (["-d", "-t", "idle", "true"], ["--kill", "x", "idle", "true"], ["idle"]):
        assert place.shimctl("exec", *argv).returncode == 125


def test_an_exec_whose_client_was_killed_can_be_ended(
    place: Place, tmux: Tmux, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle(place)
    streams = place.root / "streams"  # in /tmp itself are those of other workers
    streams.mkdir()
    monkeypatch.setenv("TMPDIR", str(streams))
    terminal = tmux.open()
    command = shlex.join(place.command("exec", "-it", "idle", "sh", "-c", "echo u''p; sleep 1000"))
    result = terminal.begin(f"TMPDIR={streams} {command}")
    terminal.expect("up\n")
    [exec_] = place.json("inspect", "idle")["execs"]
    shell = terminal.shell()
    os.kill(int(Path(f"/proc/{shell}/task/{shell}/children").read_text()), signal.SIGKILL)
    assert terminal.code(result) == 137
    assert place.json("inspect", "idle")["execs"] == [exec_]
    assert len(list(streams.glob("shimctl-*"))) == 1
    assert place.done("exec", "--kill", exec_["exec_id"], "idle") == exec_["exec_id"] + "\n"
    assert place.json("inspect", "idle")["execs"] == []
    assert len(place.json("pids", "idle")) == 1
    assert list(streams.glob("shimctl-*")) == []


def test_ending_an_exec_ends_its_client(place: Place, tmux: Tmux) -> None:
    idle(place)
    terminal = tmux.open()
    command = shlex.join(place.command("exec", "-it", "idle", "sh", "-c", "echo u''p; sleep 1000"))
    result = terminal.begin(command)
    terminal.expect("up\n")
    [exec_] = place.json("inspect", "idle")["execs"]
    place.done("exec", "--kill", exec_["exec_id"], "idle")
    assert terminal.code(result) == 137
    assert "Traceback" not in terminal.screen()
