"""``delete`` after a shim that removed everything: answered at once, by looking only."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim import boundedwork
from shim import delete as command
from shim.api.events_pb2 import TaskExit, TaskStart
from shim.api.task_pb2 import DeleteResponse
from shim.container.bundle import Bundle
from shim.container.cleanup_records import CleanupRecord, CleanupRecords
from shim.events.publisher import open_publisher
from shim.exit import Exit
from shim.linux.libc import mount
from shim.linux.mounts import unmount_all
from shim.records import write_exit
from shim.runc.command import Runtime
from shim.start.flags import Flags
from tests.e2e.waiting import PATIENCE
from tests.events.delivering import Manager, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

_MS_BIND = 4096


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory, like /run, where runtimes keep their state."""
    path = Path(f"/run/trio-shim-test-{secrets.token_hex(4)}")
    path.mkdir(0o700)
    mount("tmpfs", str(path), "tmpfs", 0)
    yield path
    unmount_all(str(path))
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def bundle(root: Path) -> Path:
    """The bundle of a container that has been deleted, by a shim that has ended."""
    bundle = root / "c1"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text("{}")
    (bundle / "options.json").write_text(f'{{"root": "{root}/runc"}}')
    (bundle / "address").write_text(f"unix://{root}/socket")
    ended = subprocess.Popen(["true"])
    ended.wait()
    (bundle / "init.pid").write_text(str(ended.pid))
    return bundle


def delete(bundle: Path, deadline: float = float("inf")) -> DeleteResponse:
    flags = Flags(namespace="ns", id="c1", bundle=str(bundle), action="delete")
    return DeleteResponse.FromString(command.delete(flags, deadline))


def command_of(bundle: Path) -> list[str]:
    """Return a command that does the same in another process."""
    flags = ["-namespace", "ns", "-id", "c1", "-bundle", str(bundle)]
    return [sys.executable, "-m", "shim", *flags, "delete"]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each process that the clean-up was left to."""
    seen: list[int] = []
    run_bounded = boundedwork.run_bounded

    def counted(*args: object, **options: object) -> None:
        seen.append(1)
        run_bounded(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "run_bounded", counted)
    return seen


def test_where_nothing_is_left_no_process_is_needed(bundle: Path, forks: list[int]) -> None:
    pid = int((bundle / "init.pid").read_text())
    for _ in range(2):
        reply = delete(bundle)
        assert (reply.pid, reply.exit_status) == (pid, 128 + signal.SIGKILL)
    assert not forks


def test_a_shim_that_serves_or_is_about_to_end_is_left_alone(
    bundle: Path, forks: list[int]
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{bundle.parent}/socket")
        sock.listen()
        delete(bundle)
    assert not forks
    assert (bundle.parent / "socket").is_socket()


@pytest.mark.parametrize(
    "what",
    ["process", "state", "gvisor", "note", "mount", "socket", "elsewhere", "nonsense", "long"],
)
def test_whatever_is_left_is_cleaned_up_in_a_process_of_its_own(
    bundle: Path, forks: list[int], what: str
) -> None:
    root = bundle.parent
    with subprocess.Popen(["sleep", "60"]) as process, socket.socket(socket.AF_UNIX) as sock:
        match what:
            case "process":
                (bundle / "init.pid").write_text(str(process.pid))
            case "state":
                (root / "runc/ns/c1").mkdir(parents=True)
            case "gvisor":
                (root / "runc/ns").mkdir(parents=True)
                (root / "runc/ns/c1_sandbox:c1.state").touch()
            case "note":
                (bundle / "members").mkdir()
                (bundle / "members/c2").write_text("nonsense")
            case "mount":
                (bundle / "rootfs/deep").mkdir()
                mount(str(bundle), str(bundle / "rootfs/deep"), "", _MS_BIND)
            case "socket":
                sock.bind(f"{root}/socket")
            case "elsewhere":  # on a disk, which may hang
                (bundle / "options.json").write_text('{"root": "/var/lib/nowhere"}')
            case "nonsense":
                (bundle / "address").unlink()
                (bundle / "address").mkdir()
            case "long":  # no socket can have this path
                (root / ("x" * 120)).touch()
                (bundle / "address").write_text(f"unix://{root}/{120 * 'x'}")
        assert delete(bundle).exit_status == 128 + signal.SIGKILL
        process.kill()
    assert forks


def hang(*_: object) -> None:
    """Never return, as on a disk that hangs."""
    while True:
        signal.pause()


@pytest.mark.parametrize("step", ["_clean_up", "_is_clean"])
def test_a_reply_at_the_deadline_has_the_exit_record(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A bundle outside of /run may be on a disk."""
    monkeypatch.setattr(command, step, hang)
    places = [tmp_path, bundle] if step == "_clean_up" else [tmp_path]
    (bundle / "rootfs/left").mkdir()
    (bundle / "address").unlink()
    (bundle / "address").mkdir()
    for place in places:
        write_exit(str(place), Exit(7, 3, 1_000))
        before = time.monotonic()
        reply = delete(place, before + 0.4)
        assert (reply.pid, reply.exit_status) == (7, 3)
        assert time.monotonic() - before < 0.4 + PATIENCE


def test_after_the_deadline_the_container_is_killed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"

    def kill(records: list[CleanupRecord]) -> None:
        with killed.open("a") as file:
            file.writelines(f"{record.id} of {record.bundle}\n" for record in records)
        hang()

    monkeypatch.setattr(command, "kill_orphaned", kill)
    for place in (bundle, tmp_path):
        write_exit(str(place), Exit(7, 3, 1_000))
        assert delete(place, time.monotonic() - 1).exit_status == 3
    assert killed.read_text() == f"c1 of {bundle}\nc1 of {tmp_path}\n"


async def test_the_events_of_a_shim_that_ended_in_order_are_delivered(bundle: Path) -> None:
    events = bundle.parent / "events"
    async with open_publisher(str(events), "ns") as publisher:
        source = publisher.open_source(Bundle(bundle).journal)
        source.publish(TaskStart(container_id="c1", pid=7))  # no process listens yet
    environ = {**os.environ, "TTRPC_ADDRESS": str(events)}
    manager = Manager()
    async with serving(events, manager):
        await trio.run_process(command_of(bundle), env=environ, capture_stdout=True)
    assert manager.pids == [7]


@pytest.mark.parametrize("accepts", [False, True])
async def test_an_exit_that_was_recorded_and_not_published_is_delivered_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, accepts: bool
) -> None:
    """A manager that accepts events publishes the exit of the init process itself."""
    events = bundle.parent / "events"
    monkeypatch.setenv("TTRPC_ADDRESS", str(events))
    write_exit(str(bundle), Exit(7, 1, 1_000), "published")
    write_exit(str(bundle), Exit(8, 2, 2_000), "journaled", unpublished=True)
    write_exit(str(bundle), Exit(11, 5, 3_000), unpublished=True)
    write_exit(str(bundle), Exit(10, 4, 5_000), "e2", unpublished=True)
    write_exit(str(bundle), Exit(9, 3, 4_000), "e1", unpublished=True)
    manager = Manager()
    async with serving(events, manager), open_publisher(str(events), "ns") as publisher:
        event = TaskExit(container_id="c1", id="journaled", pid=8, exit_status=2)
        event.exited_at.FromNanoseconds(2_000)
        publisher.open_source(Bundle(bundle).journal).publish(event)
        await publisher.flush()
        # The daemon is killed before it notes in the record that the event is in the journal.
        journal = Path(Bundle(bundle).journal).read_bytes()
    Path(Bundle(bundle).journal).write_bytes(journal)
    if not accepts:
        await trio.run_process(command_of(bundle), capture_stdout=True)
    async with serving(events, manager):
        for _ in range(2):
            await trio.to_thread.run_sync(delete, bundle)
        with trio.fail_after(10):
            while len(manager.got) < 4 - accepts:  # a process delivers in the background
                await trio.sleep(0.01)
    exits = [TaskExit.FromString(envelope.event.value) for envelope in manager.got]
    assert [
        (one.id, one.pid, one.exit_status, one.exited_at.ToNanoseconds()) for one in exits
    ] == [
        ("journaled", 8, 2, 2_000),
        ("e1", 9, 3, 4_000),
        ("e2", 10, 4, 5_000),
        *([] if accepts else [("c1", 11, 5, 3_000)]),
    ]
    assert {(one.namespace, one.topic) for one in manager.got} == {("ns", "/tasks/exit")}


@pytest.mark.parametrize("started", [False, True])
def test_a_shim_that_is_started_while_orphans_are_killed_keeps_what_is_noted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    records = CleanupRecords(str(bundle))
    runtime = Runtime("runc", f"{bundle.parent}/runc/ns")
    records.write(CleanupRecord("c2", str(bundle.parent / "c2"), runtime))
    flags = Flags(namespace="ns", id="c1", bundle=str(bundle))
    with socket.socket(socket.AF_UNIX) as sock:

        def kill_and_start(orphans: list[CleanupRecord]) -> None:
            assert [one.id for one in orphans] == ["c1", "c2"]
            if started:
                sock.bind(f"{bundle.parent}/socket")
                sock.listen()

        monkeypatch.setattr(command, "kill_orphaned", kill_and_start)
        command._clean_up(flags, Bundle(bundle))
    assert records.ids() == (["c2"] if started else [])
