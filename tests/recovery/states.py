"""The states that a daemon leaves to its replacement, of one daemon that is always the same.

``stored/VERSION`` has those that each version of this project writes, so that the tests
know whether later versions can read them::

    python -m tests.recovery.states            # names the files that this code writes otherwise
    python -m tests.recovery.states --write    # writes them

The states come from the code that a daemon runs.  Where they have values that
differ from run to run, these are replaced: paths, times on the monotonic clock, addresses.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from shim.api import task_pb2
from shim.api.envelope_pb2 import Envelope
from shim.container.bundle import Config
from shim.container.expected import Expected, SavedExpected
from shim.container.lifecycle import Op
from shim.container.options import Options
from shim.container.process import Process
from shim.container.reservations import Reservation, Reservations
from shim.container.saved import SavedState
from shim.daemon import Settings
from shim.events.forwarding import Sending
from shim.exit import Exit
from shim.linux.fifos import Fd
from shim.reaper import open_reaper
from shim.recovery import messages, transfers
from shim.recovery.connections import _TRANSFERS, ConnectionRecord
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import KINDS
from shim.recovery.slot import _FIRST, _SECOND, StateSlot
from shim.recovery.turn import Claim, Turn
from shim.recovery.versions import WRITTEN
from shim.start.profile import Profile
from shim.stdio.kept import Kept
from shim.stdio.keptoverflow import KeptOverflowPipeRelay, Stages
from shim.stdio.opening import open_stdio
from shim.stdio.spool import Overflow, Ring
from shim.stdio.streams import StdioSpec
from shim.ttrpc import wire_pb2
from shim.ttrpc.callstate import encode_call, encode_state
from shim.ttrpc.protocol import RequestReceived
from shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

STORED = Path(__file__).parent / "stored"
# The files of each kind of state in shim.recovery.versions: a kind's number is raised if one of
# them changes.  ``versions.json`` has the numbers.
FILES = {
    "daemon": ("daemon.json",),
    "container": ("container.json", "creating.json", "output.json"),
    "expected": ("expected.json",),
    "events": ("forwarding.json",),
    "calls": ("calls.json", "connection.json"),
    "fds": ("slot.json", "names.json", "messages.json"),
}
# Stands for a directory, and for a time on the monotonic clock, in s.
DIRECTORY, TIME = "/states", 1234.5

RESERVATION = Reservation("c2", f"{DIRECTORY}/c2", "pod", f"unix://{DIRECTORY}/pod.sock", 20)
PROFILE = Profile(
    settings=Settings(
        namespace="k8s.io",
        id="c1",
        bundle=f"{DIRECTORY}/c1",
        ttrpc_address="/run/containerd/containerd.sock.ttrpc",
        address=f"unix://{DIRECTORY}/shim.sock",
        limit=120.0,
        ended_is_killed=True,
        first=RESERVATION,
    ),
    answer=f"unix://{DIRECTORY}/shim.sock".encode(),
    title=["containerd-shim-trio-v2", "-namespace", "k8s.io", "-id", "c1"],
    level=20,
    shim_cgroup="/shims",
    sched_core=True,
    environ={"PATH": "/usr/bin:/bin", "ODD": "\udcff"},
    umask=0o022,
    nice=-5,
    affinity=[0, 1],
    limits={"RLIMIT_NOFILE": (1024, 4096), "RLIMIT_CORE": (0, -1)},
    oom_score=-998,
)
REQUEST = task_pb2.CreateTaskRequest(
    id="c1", bundle=f"{DIRECTORY}/c1", stdout=f"{DIRECTORY}/out", terminal=False
)
CONFIG = Config(
    terminal=False,
    root="rootfs",
    annotations={"io.kubernetes.cri.sandbox-id": "pod"},
    own_pid_namespace=True,
    cgroups_path="/pod/c1",
)
OPTIONS = Options(no_pivot_root=True, io_uid=1, io_gid=2, binary_name="runc", root="/run/runc")
EXIT = Exit(101, 137, 1_700_000_000_000_000_000)
UNKNOWN = Exit(102, 255, 1_700_000_000_000_000_001, "another process reaped it")
OVERFLOW = Overflow(1 << 20, (f"{DIRECTORY}/spool", f"{DIRECTORY}/c1"))
CGROUP = SimpleNamespace(directories={"": "/sys/fs/cgroup/pod/c1"}, oom_count=({"": 3}, 1))
NO_CGROUP = SimpleNamespace(directories={}, oom_count=None)
CALLS = [
    RequestReceived(1, "containerd.task.v2.Task", "Wait", b"\n\x02c1", None, []),
    RequestReceived(
        *(3, "containerd.task.v3.Task", "Kill", b"\n\x02c1", 5.0),
        [wire_pb2.KeyValue(key="containerd-namespace-ttrpc", value='k8s"io')],
    ),
]
CLAIM = Claim(token=1)
SENDING = Sending(Envelope(topic="/tasks/start").SerializeToString(), 3, 17)
RECEIVED, UNHANDLED, SENT = b"the bytes of some requests", 8, b"the bytes of a reply"


async def written() -> dict[str, str]:
    """Return the content of each file that this code writes."""
    with tempfile.TemporaryDirectory() as name:
        texts = {
            "daemon.json": PROFILE.encode().decode(),
            **await _containers(Path(name)),
            "output.json": await _output(),
            "expected.json": await _expected(),
            "forwarding.json": SENDING.encode().decode(),
            "calls.json": _calls(),
            "connection.json": _connection(),
            "slot.json": _slot(),
            "names.json": json.dumps(KINDS),
            "messages.json": json.dumps(_verbs()),
            "versions.json": json.dumps(WRITTEN),
        }
        return {one: text.replace(name, DIRECTORY) + "\n" for one, text in texts.items()}


async def _containers(directory: Path) -> dict[str, str]:
    """Return the states of a container with processes of all kinds, and of one in its Create."""
    os.mkfifo(directory / "out")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours)
    texts = {}
    with theirs:
        async with open_reaper() as reaper, trio.open_nursery() as nursery:
            init = Process("", StdioSpec("", f"{directory}/out", "", terminal=False))
            init.pid = 100
            init.life.apply(Op.START)
            added = Process(
                "added", StdioSpec(f"{directory}/in", "file:///log", "", terminal=True)
            )
            ended, unknown = (Process(id_, StdioSpec()) for id_ in ("ended", "unknown"))
            for process, exit_ in ((ended, EXIT), (unknown, UNKNOWN)):
                process.pid = exit_.pid
                process.life.apply(Op.START)
                process.set_exit(exit_)
            ended.close_stdin()
            added.doing = "Start"
            log = Process("log", StdioSpec("", f"file://{directory}/log", ""))
            tty = Process("tty", StdioSpec("", f"{directory}/out", "", terminal=True))
            for process in (init, log, tty):
                stdio = await open_stdio(
                    process.spec,
                    nursery=nursery,
                    reaper=reaper,
                    container_id="c1",
                    namespace="k8s.io",
                    overflow=Overflow(
                        OVERFLOW.limit, tuple(f"{directory}/{one}" for one in ("spool", "c1"))
                    ),
                    deposit=deposit,
                    prefix=f"io/c1/{process.id}/",
                )
                process.set_stdio(stdio)
            execs = {one.id: one for one in (added, ended, unknown, log, tty)}
            saved = SavedState(REQUEST, CONFIG, OPTIONS, init, execs, deposit)
            group: Any = CGROUP
            saved.group = group
            saved.doing = "Pause"
            saved.pending = b"an event"
            saved.existed = ("/sys/fs/cgroup/pod",)
            saved.note_deleted("deleted", EXIT)
            texts["container.json"] = _state_of(saved)
            group = NO_CGROUP
            new = SavedState(REQUEST, CONFIG, OPTIONS, Process("", StdioSpec()), {}, deposit)
            new.group = group
            with new.operation("Create"):
                texts["creating.json"] = _state_of(new)
            for process in (init, log, tty):
                await process.dispose()
        deposit.close()
    return texts


def _state_of(saved: SavedState) -> str:
    assert saved._slot is not None
    text = saved._slot.read().decode()
    return re.sub(r'("console": )"[^"]+"', rf'\1"{DIRECTORY}/console"', text)


async def _output() -> str:
    """Return the record of a relay that has stored output."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours)
    reader, writer = (Fd(number) for number in os.pipe())
    with theirs:
        stages = Stages.open(Kept(deposit, "io/c1//"), "stdout")
        relay = KeptOverflowPipeRelay("stdout", reader, writer, stages, overflow=OVERFLOW)
        relay._store = store = Ring(Fd(os.memfd_create("stored")), 1 << 20)
        store.put(b"stored")
        relay._dropped, relay._away, relay._rest = 7, True, 3
        relay._save(giving=True)
        text = stages.record.read().decode()
        store.close()
        for fd in (*stages.fds, reader, writer):
            fd.close()
        deposit.close()
    return text


async def _expected() -> str:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(ours)
    with theirs:
        saved = SavedExpected(deposit)
        reservations = Reservations(f"{DIRECTORY}/c1", f"unix://{DIRECTORY}/s.sock", RESERVATION)
        saved.write(Expected(reservations.state(), [TIME], ["c3"], ends=True))
        assert saved._slot is not None
        value = json.loads(saved._slot.read())
        deadlines = value["reservations"]["deadlines"]
        value["reservations"]["deadlines"] = dict.fromkeys(deadlines, TIME)
        deposit.close()
    return json.dumps(value)


def _calls() -> str:
    encoded = ",".join(map(encode_call, CALLS))
    text = encode_state(encoded, 17, b"\0\xffunsent").decode()
    return re.sub(r"\d+\.\d+(?=,\[)", str(TIME), text)


def _connection() -> str:
    """Return the counts and the bytes of a connection that has moved some."""
    one, other = socket.socketpair()
    with one, other:
        slot = StateSlot.new()
        record = ConnectionRecord(one.fileno(), slot, Deposit(), ("conn/0", "calls/0"))
        other.send(RECEIVED)
        record.receive()
        record.advance(UNHANDLED, 5)
        record.send(SENT, 4)
        size = transfers._ENTRY_AT + 4 * transfers._ENTRY_SIZE
        part = bytearray(os.pread(slot.fd, size, _TRANSFERS))
        for number in range(4):
            at = transfers._ENTRY_AT + number * transfers._ENTRY_SIZE
            for address in (at + 2 * _WORD, at + transfers._IOVEC_AT):
                struct.pack_into("P", part, address, 0)
        buffered = os.pread(slot.fd, len(RECEIVED), _TRANSFERS + transfers._BUFFER)
        record.close()
    return _extents({_TRANSFERS: bytes(part), _TRANSFERS + transfers._BUFFER: buffered})


_WORD = struct.calcsize("P")


def _slot() -> str:
    """Return the file of a state that was written twice, and has a turn."""
    with StateSlot.new() as slot:
        slot.write(b"the earlier state")
        slot.write(b"the present state")
        turn = Turn(slot.fd, CLAIM)
        assert turn.take(0)
        turn.serve()
        turn.leave()
        size = 8 + len(b"the present state")
        parts = {at: os.pread(slot.fd, size, at) for at in (_FIRST, _SECOND)}
        return _extents({0: os.pread(slot.fd, _FIRST, 0), **parts})


def _verbs() -> dict[str, str]:
    """Return the verbs of the messages between daemons and keepers."""
    constants = vars(messages).items()
    return {name: value.decode() for name, value in constants if isinstance(value, bytes)}


def _extents(parts: Mapping[int, bytes]) -> str:
    return json.dumps({str(at): part.hex() for at, part in parts.items()})


def file_of(extents: str) -> int:
    """Return a memfd with the content that a file of extents has."""
    fd = os.memfd_create("stored")
    for at, part in json.loads(extents).items():
        os.pwrite(fd, bytes.fromhex(part), int(at))
    return fd


def read(version: str) -> dict[str, str]:
    """Return the stored files of a version."""
    return {path.name: path.read_text() for path in (STORED / version).iterdir()}


def main() -> int:
    """Run the command line; return the exit status."""
    now = trio.run(written)
    directory = STORED / VERSION
    before = read(VERSION) if directory.exists() else {}
    changed = [name for name, text in now.items() if before.get(name) != text]
    for name in changed:
        print(f"{directory.name}/{name}")
    if sys.argv[1:] != ["--write"]:
        return 1 if changed else 0
    directory.mkdir(parents=True, exist_ok=True)
    for name in changed:
        (directory / name).write_text(now[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
