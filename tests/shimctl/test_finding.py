"""Which container a command means: a whole id, its beginning, and the namespaces."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest

from shimctl.directories import BUNDLES, containers
from tests.shimctl.commands import COMMANDS
from tests.shimctl.tool import called

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIMCTL_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def make_directory(state: Path, namespace: str, name: str) -> Path:
    """Make the directory of a container that has no shim."""
    directory = state / namespace / name
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"process": {"args": ["sh"]}}')
    return directory


CHANGING = {
    *("start", "kill", "pause", "resume", "delete", "update", "checkpoint", "shutdown"),
    *("exec", "attach", "stop", "restart", "rm", "upgrade"),
}


def with_an_id() -> list[list[str]]:
    """Every command that takes a container's id, with what else it needs."""
    more = {
        "exec": ["true"],
        "update": ["--pids-limit", "9"],
        "checkpoint": ["--image-path", "/nonexistent"],
        "top": ["-i", "1"],
        "stats": ["--no-stream"],
    }
    found = []
    for name, command in COMMANDS.items():
        arguments = {one.name for one in command.params if isinstance(one, click.Argument)}
        if {"id_", "ids"} & arguments:
            before = [] if name == "exec" else more.get(name, [])
            found.append([name, *before, "ID", *(more["exec"] if name == "exec" else [])])
    return found


@pytest.mark.parametrize("command", with_an_id(), ids=lambda command: command[0])
def test_a_short_name_that_may_be_several_is_refused_with_a_list(
    state: Path, command: list[str]
) -> None:
    # Beginnings that no other container has: all of the host are looked through.
    for name in ("twin-still", "twin-stick"):
        make_directory(state, "ns", name)
    done = called(*["twin-sti" if word == "ID" else word for word in command])
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert "ns/twin-stick, ns/twin-still; " in done.stderr
    if command[0] in CHANGING:
        assert "no container 'twin-sti'; ids that begin so: " in done.stderr
    else:
        assert "'twin-sti' matches " in done.stderr


@pytest.mark.parametrize("command", with_an_id(), ids=lambda command: command[0])
def test_only_what_changes_nothing_takes_the_beginning_of_a_name(
    state: Path, command: list[str]
) -> None:
    bundle = make_directory(state, "ns", "unlike-any-other")
    before = sorted(path.name for path in bundle.iterdir())
    done = called(*["unlike-any" if word == "ID" else word for word in command])
    begun = "ids that begin so: ns/unlike-any-other; this command takes a whole id"
    assert (begun in done.stderr) == (command[0] in CHANGING)
    assert ("no container" in done.stderr) == (command[0] in CHANGING)
    assert sorted(path.name for path in bundle.iterdir()) == before


@pytest.mark.parametrize("command", with_an_id(), ids=lambda command: command[0])
def test_an_id_in_several_namespaces_is_refused_with_their_names(
    state: Path, command: list[str]
) -> None:
    for namespace in ("two", "one"):
        make_directory(state, namespace, "in-both")
    done = called(*["in-both" if word == "ID" else word for word in command])
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "shimctl: 'in-both' is in several namespaces: one, two; use -n NAMESPACE\n"
    )


@pytest.mark.parametrize("command", with_an_id(), ids=lambda command: command[0])
def test_a_container_that_is_gone_is_said_in_one_line(state: Path, command: list[str]) -> None:
    done = called(*["gone" if word == "ID" else word for word in command])
    assert (done.returncode, done.stdout) == (125, "")
    assert re.fullmatch(r"shimctl: no container 'gone'; see `shimctl ps`\n", done.stderr)


@pytest.mark.parametrize("command", [*with_an_id(), ["ps"]], ids=lambda command: command[0])
def test_a_socket_that_belongs_to_something_else_is_no_shim(
    state: Path, tmp_path: Path, command: list[str]
) -> None:
    directory = make_directory(state, "ns", "foreign")
    path = tmp_path / "socket"
    (directory / "address").write_text(f"unix://{path}")
    script = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as listening:\n"
        "    listening.bind(sys.argv[1])\n"
        "    listening.listen()\n"
        "    print(flush=True)\n"
        "    while True:\n"
        "        peer = listening.accept()[0]\n"
        "        peer.recv(10)\n"
        "        peer.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')\n"
        "        peer.close()"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            done = called(*["foreign" if word == "ID" else word for word in command])
        finally:
            other.kill()
    if command[0] == "ps":
        assert re.search(r"foreign +- .* Not a shim", done.stdout)
    elif command[0] == "inspect":
        assert done.returncode == 0
        assert re.search(r"problem +[^- ]", done.stdout), done.stdout
    elif command[0] == "stats":
        assert done.returncode == 0
        assert re.search(r" foreign +- .* no shim answers|foreign +- .*- ", done.stdout)
    elif command[0] not in ("delete", "rm"):
        assert (done.returncode, done.stdout) == (125, "")
        assert re.fullmatch(r"shimctl: [^\n]+\n", done.stderr)


@pytest.mark.parametrize("word", ["0", "65", "TREM", "SIGNONE"])
def test_a_mistyped_signal_sends_none_to_the_containers_before_it(state: Path, word: str) -> None:
    make_directory(state, "ns", "unlike-any-other")
    done = called("kill", "unlike-any-other", word)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"shimctl: there is no signal {word!r}; `kill -l` lists them\n"


def make_bundle(state: Path, name: str) -> Path:
    """Make the bundle of a manager's container whose shim is dead."""
    bundle = state / BUNDLES / "ns" / name
    bundle.mkdir(parents=True)
    (bundle / "address").write_text(f"unix://{state}/none")
    return bundle


def test_a_state_directory_with_several_names_is_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, link = tmp_path / "containerd", tmp_path / "link"
    make_bundle(directory, "once-only")
    link.symlink_to(directory)
    monkeypatch.setenv("CONTAINERD_STATE", f"{directory}/")
    states = ("--state", link, "--state", directory)
    listed = json.loads(called("ps", "-a", "-n", "ns", *states, "-o", "json").stdout)
    assert [one["id"] for one in listed] == ["once-only"]
    assert "is dead" in called("state", *states, "once-only").stderr


@pytest.mark.parametrize("command", ["state", "kill", "wait", "stop"])
def test_of_a_dead_shim_the_container_is_named_and_how_it_is_ended(
    state: Path, tmp_path: Path, command: str
) -> None:
    (make_directory(state, "ns", "our-own") / "address").write_text("unix:///none")
    make_bundle(tmp_path / "containerd", "foreign-one")
    for name, remedy in (
        ("our-own", "`shimctl delete -f our-own` ends it"),
        ("foreign-one", "its manager ends it"),
    ):
        done = called(command, "--state", tmp_path / "containerd", name)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith(f"shimctl: the shim of {name} is dead: no process listens")
        assert done.stderr.endswith(f"; {remedy}\n")


def test_a_namespace_that_is_removed_meanwhile_hides_no_other_container(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the `rm` of its last container."""
    kept, gone = make_directory(state, "kept", "web"), make_directory(state, "gone", "db")
    scandir = os.scandir

    def vanishing(path: Any) -> Any:
        if str(path) == str(gone.parent):
            monkeypatch.setattr(os, "scandir", scandir)
            shutil.rmtree(gone.parent)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert [one.bundle for one in containers()] == [kept]
    assert not gone.exists()
