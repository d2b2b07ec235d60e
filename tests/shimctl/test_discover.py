from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import InvalidError, NotFoundError
from shim.linux.sockets import socket_address
from shimctl import discover
from shimctl.discover import Found, Health, choose, list_shims
from shimctl.values import Status
from tests.e2e.waiting import PATIENCE
from tests.shimctl.peers import FakeTask, answering, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "discover-test"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIMCTL_STATE", str(tmp_path / "ours"))
    monkeypatch.setenv("CONTAINERD_STATE", str(tmp_path / "containerd"))
    return tmp_path / "containerd"


def bundle(state: Path, container: str, **files: str) -> Path:
    path = state / "io.containerd.runtime.v2.task" / NAMESPACE / container
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


async def found_in(
    directory: Path, namespace: str = NAMESPACE, timeout: float = discover.PROBE
) -> list[Found]:
    """The shims that are found, without those of other users of this host."""
    shims = await list_shims(socket_dir=directory, timeout=timeout)
    return [found for found in shims if found.namespace == namespace]


async def test_a_bundle_with_an_address_is_a_shim(tmp_path: Path, state: Path) -> None:
    async with serving(tmp_path / "s1", FakeTask(2, "one")) as address:
        bundle(state, "one", address=address)
        bundle(state, "unborn")
        [found] = await found_in(tmp_path)
    assert (found.id, found.health, found.status) == ("one", Health.UP, Status.RUNNING)
    assert (found.pid, found.shim_pid, found.managed) == (42, 4_000_000, False)


async def test_containerds_newer_file_is_read_first(tmp_path: Path, state: Path) -> None:
    async with serving(tmp_path / "s1", FakeTask(3)) as address:
        bootstrap = {"version": 3, "address": address, "protocol": "ttrpc"}
        bundle(state, "one", bootstrap_json=json.dumps(bootstrap), address="unix:///old")
        bundle(state, "two", bootstrap_json="{", address=address)
        shims = await found_in(tmp_path)
    assert [(found.id, found.address) for found in shims] == [("one", address), ("two", address)]


async def test_a_container_of_ours_is_known_as_such(tmp_path: Path) -> None:
    work = tmp_path / "ours" / NAMESPACE / "c"
    work.mkdir(parents=True)
    (work / "config.json").write_text("{}")
    [found] = await found_in(tmp_path)
    assert (found.managed, found.health, found.bundle) == (True, Health.DEAD, str(work))


async def test_the_dead_are_reported(tmp_path: Path, state: Path) -> None:
    bundle(state, "dead", address=f"unix://{tmp_path}/gone")
    bundle(state, "odd", address="unix://" + "x" * 500)
    shims = await found_in(tmp_path)
    assert {found.id: found.health for found in shims} == {
        "dead": Health.DEAD,
        "odd": Health.FOREIGN,
    }


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b""])
async def test_a_socket_of_something_else_is_no_shim(
    tmp_path: Path, state: Path, answer: bytes
) -> None:
    async with answering(tmp_path / "http", answer) as address:
        bundle(state, "x", address=address)
        [found] = await found_in(tmp_path)
    assert found.health in (Health.FOREIGN, Health.SILENT)


async def test_silent_sockets_cost_one_timeout_together(tmp_path: Path, state: Path) -> None:
    async with answering(tmp_path / "s1", None) as address:
        for number in range(30):
            bundle(state, f"c{number}", address=address)
        with trio.fail_after(3 * PATIENCE):
            shims = await found_in(tmp_path, timeout=0.2 * PATIENCE)
    assert [found.health for found in shims] == [Health.SILENT] * 30


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory short enough for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        yield Path(directory)


@pytest.fixture
def lonely() -> Iterator[None]:
    """A process with the arguments of a shim."""
    argv = ["-namespace", NAMESPACE, "--id=lonely", "-address", "/x.sock"]
    process = subprocess.Popen([sys.executable, "-c", "input()", *argv], stdin=subprocess.PIPE)
    yield
    process.communicate(b"\n")


@pytest.mark.usefixtures("lonely")
async def test_a_shim_known_only_by_its_socket_is_named_by_its_process(socket_dir: Path) -> None:
    address = socket_address("/x.sock", NAMESPACE, "lonely", str(socket_dir))
    async with serving(Path(address.removeprefix("unix://")), FakeTask(2, "lonely")):
        [found] = await found_in(socket_dir)
    assert (found.id, found.health, found.status) == ("lonely", Health.UP, Status.RUNNING)


@pytest.mark.parametrize(("action", "known"), [("start", False), ("delete", False), ("", True)])
def test_a_command_that_a_manager_runs_is_not_taken_for_its_shim(action: str, known: bool) -> None:
    flags = ["-namespace", NAMESPACE, "-id", "acted", "-address", "/run/nobody"]
    argv = [sys.executable, "-c", "input()", *flags, *([action] if action else [])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        pid = discover.shim_at(socket_address("/run/nobody", NAMESPACE, "acted"))
        assert pid == (process.pid if known else 0)
        process.communicate(b"\n")


async def test_a_socket_that_nobody_can_name_is_still_listed(tmp_path: Path) -> None:
    async with serving(tmp_path / "s" / "what", FakeTask(2)) as address:
        shims = await found_in(tmp_path / "s", namespace="")
    assert [(found.id, found.address) for found in shims] == [("", address)]


SHIMS = [Found("a", "redis", "s1"), Found("a", "redis-2", "s2"), Found("b", "web", "s3")]


@pytest.mark.parametrize(("prefix", "address"), [("redis", "s1"), ("redis-", "s2"), ("w", "s3")])
def test_a_full_id_wins_and_a_unique_prefix_will_do(prefix: str, address: str) -> None:
    assert choose(SHIMS, prefix).address == address


def test_an_ambiguous_prefix_lists_whom_it_may_mean() -> None:
    with pytest.raises(InvalidError, match="a/redis, a/redis-2"):
        choose(SHIMS, "red")


def test_one_id_in_two_namespaces_needs_a_namespace() -> None:
    shims = [*SHIMS, Found("b", "redis", "s4")]
    with pytest.raises(InvalidError, match="namespaces: a, b; use -n"):
        choose(shims, "redis")
    assert choose(shims, "redis", "b").address == "s4"


@pytest.mark.parametrize(("prefix", "namespace"), [("mysql", ""), ("", ""), ("web", "a")])
def test_nobody_of_that_name_is_not_found(prefix: str, namespace: str) -> None:
    with pytest.raises(NotFoundError):
        choose(SHIMS, prefix, namespace)


HEXADECIMAL = [Found("a", "4f1c09ab77e2", "h1"), Found("a", "4f1c09ff0000", "h2")]


@pytest.mark.parametrize(
    ("text", "address"),
    [("redis", "s1"), ("4f1c09ab77e2", "h1"), ("4f1c09a", "h1"), ("4f1c09f", "h2")],
)
def test_a_change_takes_a_whole_id_or_enough_digits(text: str, address: str) -> None:
    assert choose([*SHIMS, *HEXADECIMAL], text, to_change=True).address == address


@pytest.mark.parametrize("text", ["redis-", "w", "we", "4f1c0", "4"])
def test_a_change_takes_no_shorter_beginning_and_none_of_a_name(text: str) -> None:
    with pytest.raises(NotFoundError, match=r"ids that begin so: .*takes a whole id"):
        choose([*SHIMS, *HEXADECIMAL], text, to_change=True)


def test_a_change_takes_no_ambiguous_digits() -> None:
    with pytest.raises(InvalidError, match="a/4f1c09ab77e2, a/4f1c09ff0000"):
        choose(HEXADECIMAL, "4f1c09", to_change=True)
