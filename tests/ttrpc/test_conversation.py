"""The bytes on the wire, written by hand: our own encoder proves nothing.

Source: containerd/ttrpc channel.go, request.proto, server.go; the numbers of the task
API's fields are those of containerd api/runtime/task/v3/shim.proto.
"""

from __future__ import annotations

import errno
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from shim import errors
from shim.api import bootstrap_pb2, options_pb2, process_pb2, runtimeoptions_pb2, task_pb2
from shim.runc.driver import RuntimeFailedError
from shim.service import ALIASES
from shim.ttrpc.server import PeerRefusedError, handlers_of, serve_connection
from tests.ttrpc.fake import V3_AS_V2, FakeTask, sockets_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

V3 = b"containerd.task.v3.Task"
MIB4 = 4 << 20


def varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])


def text(number: int, value: bytes) -> bytes:
    """Encode field ``number`` of a protobuf message: a string, bytes or a message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value % 2**64)


def frame(stream_id: int, payload: bytes = b"", kind: int = 1, flags: int = 0) -> bytes:
    return struct.pack(">IIBB", len(payload), stream_id, kind, flags) + payload


def call(stream_id: int, method: bytes, *more: bytes, service: bytes = V3) -> bytes:
    return frame(stream_id, text(1, service) + text(2, method) + b"".join(more))


class Peer:
    """A manager that writes and reads bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._unread = b""

    async def send(self, *data: bytes) -> None:
        await self._stream.send_all(b"".join(data))

    async def receive(self) -> bytes:
        """Return the next frame as it came."""
        with trio.fail_after(20):
            head = await self._exactly(10)
            return head + await self._exactly(int.from_bytes(head[:4]))

    async def _exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            chunk = await self._stream.receive_some()
            assert chunk, "the server hung up"
            self._unread += chunk
        data, self._unread = self._unread[:count], self._unread[count:]
        return data

    async def refusal(self) -> tuple[int, int]:
        """Return the id and the code of the next frame, which must be an error and no more."""
        data = await self.receive()
        _, stream_id, kind, flags = struct.unpack(">IIBB", data[:10])
        assert (kind, flags) == (2, 0)
        # Response.status, then its length in one byte or two, then Status.code.
        assert data[10] == 1 << 3 | 2
        status = data[12 if data[11] < 128 else 13 :]
        assert status[0] == 1 << 3
        return stream_id, status[1]


@asynccontextmanager
async def open_peer(service: FakeTask, *, v3: bool = True) -> AsyncIterator[Peer]:
    theirs, ours = sockets_pair()
    handlers = handlers_of(service, aliases=V3_AS_V2)
    if not v3:
        handlers = {name: h for name, h in handlers.items() if ".v3." not in name}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(serve_connection, theirs, handlers=handlers, cancellable={"Wait"})
        )
        async with ours:
            yield Peer(ours)


async def test_a_call_and_its_answer_are_these_bytes() -> None:
    async with open_peer(FakeTask()) as peer:
        pair = text(1, b"containerd-namespace-ttrpc") + text(2, b"k8s.io")
        fields = (text(3, text(1, b"redis")), integer(4, 30 * 10**9), text(5, pair))
        await peer.send(call(1, b"State", *fields))
        reply = text(2, text(1, b"redis") + integer(3, 1))
        assert await peer.receive() == frame(1, reply, kind=2)


async def test_what_says_nothing_is_a_frame_of_ten_bytes_both_ways() -> None:
    async with open_peer(FakeTask()) as peer:
        await peer.send(call(1, b"Kill"))
        assert await peer.receive() == b"\0\0\0\0\0\0\0\x01\x02\0"
        # A whole request, though it calls nothing there is.
        await peer.send(frame(3))
        assert await peer.refusal() == (3, 12)


async def test_a_failure_is_a_status_with_its_code_and_text() -> None:
    async with open_peer(FakeTask()) as peer:
        await peer.send(call(1, b"Start", text(3, text(1, b"redis"))))
        status = integer(1, 5) + text(2, b"container redis does not exist")
        assert await peer.receive() == frame(1, text(1, status), kind=2)


async def test_the_keys_of_metadata_are_lower_case_and_may_repeat() -> None:
    service = FakeTask()
    async with open_peer(service) as peer:
        pairs = [(b"Trace-ID", b"a"), (b"trace-id", b"b")]
        fields = [text(5, text(1, key) + text(2, value)) for key, value in pairs]
        await peer.send(call(1, b"Connect", *fields))
        await peer.receive()
    assert service.metadata == {"trace-id": ["a", "b"]}


async def test_a_deadline_that_has_passed_is_a_negative_number() -> None:
    service = FakeTask()
    async with open_peer(service) as peer:
        await peer.send(call(1, b"State", integer(4, -1)))
        assert await peer.refusal() == (1, 4)
    assert service.states == 0


async def test_a_message_of_four_mebibytes_is_taken_and_one_byte_more_is_not() -> None:
    async with open_peer(FakeTask()) as peer:
        # A tag and a length of four bytes stand before each of the two values.
        head = len(call(1, b"Kill")) - 10 + 2 * 5
        largest = call(1, b"Kill", text(3, text(2, b"x" * (MIB4 - head))))
        assert len(largest) == 10 + MIB4
        await peer.send(largest)
        assert await peer.receive() == frame(1, kind=2)
        await peer.send(call(3, b"Kill", text(3, text(2, b"x" * (MIB4 - head + 1)))))
        assert await peer.refusal() == (3, 8)
        # The body is gone, the connection is not, and the id was never used.
        await peer.send(call(3, b"Kill"))
        assert await peer.receive() == frame(3, kind=2)


async def test_each_refusal_is_told_on_the_id_it_is_about() -> None:
    bad = {
        4: call(4, b"Kill"),
        5: call(5, b"Kill"),
        3: call(3, b"Kill"),
        7: frame(7, b"\xff"),
        9: call(9, b"Kill", text(3, b"\xff")),
        11: call(11, b"Fly"),
    }
    async with open_peer(FakeTask()) as peer:
        await peer.send(call(5, b"Kill"))
        assert await peer.receive() == frame(5, kind=2)
        await peer.send(*bad.values())
        refused = [await peer.refusal() for _ in bad]
        assert dict(refused) == {4: 3, 5: 3, 3: 3, 7: 3, 9: 3, 11: 12}
        await peer.send(call(13, b"Kill"))
        assert await peer.receive() == frame(13, kind=2)


@pytest.mark.parametrize("kind", [0, 2, 3, 4, 255])
@pytest.mark.parametrize("flags", [0, 1, 2, 4, 255])
async def test_what_is_no_request_is_passed_over(kind: int, flags: int) -> None:
    async with open_peer(FakeTask()) as peer:
        await peer.send(frame(1, b"x", kind, flags), call(1, b"Kill"))
        assert await peer.receive() == frame(1, kind=2)


@pytest.mark.parametrize("flags", [1, 2, 4, 7, 255])
async def test_the_flags_of_a_request_change_nothing(flags: int) -> None:
    async with open_peer(FakeTask()) as peer:
        await peer.send(frame(1, text(1, V3) + text(2, b"Kill"), flags=flags))
        assert await peer.receive() == frame(1, kind=2)


async def test_who_asks_for_the_newer_service_in_vain_goes_on_with_the_older() -> None:
    async with open_peer(FakeTask(), v3=False) as peer:
        await peer.send(call(1, b"Kill"))
        assert await peer.refusal() == (1, 12)
        await peer.send(call(3, b"Kill", service=b"containerd.task.v2.Task"))
        assert await peer.receive() == frame(3, kind=2)


async def test_answers_come_as_they_are_ready_and_late_ones_too() -> None:
    service = FakeTask()
    async with open_peer(service) as peer:
        await peer.send(call(1, b"Wait"), call(3, b"Create"), call(5, b"Kill"))
        assert await peer.receive() == frame(5, kind=2)
        service.may_create.set()
        assert await peer.receive() == frame(3, text(2, integer(1, 7)), kind=2)
        service.may_exit.set()
        assert await peer.receive() == frame(1, text(2, integer(1, 137)), kind=2)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.ShimError(), 2),
        (errors.InvalidError(), 3),
        (errors.TimedOutError(), 4),
        (errors.NotFoundError(), 5),
        (errors.ExistsError(), 6),
        (errors.WrongStateError(), 9),
        (errors.UnsupportedError(), 12),
        (errors.UnavailableError(), 14),
        (PeerRefusedError(), 7),
        (RuntimeFailedError(), 2),
        (ValueError(), 2),
        (OSError(errno.ENOENT, ""), 5),
        (OSError(errno.ESRCH, ""), 5),
        (OSError(errno.EEXIST, ""), 6),
        (OSError(errno.EINVAL, ""), 3),
        (OSError(errno.ENOSPC, ""), 8),
        (OSError(errno.EIO, ""), 2),
        (ExceptionGroup("", [errors.NotFoundError()]), 5),
        (ExceptionGroup("", [errors.NotFoundError(), ValueError()]), 2),
    ],
    ids=repr,
)
def test_a_failure_has_the_code_containerd_turns_back_into_its_own(
    failure: Exception, code: int
) -> None:
    assert errors.status_of(failure)[0].value == code


FIELDS: dict[type[Message], str] = {
    task_pb2.CreateTaskRequest: "id bundle rootfs terminal stdin stdout stderr checkpoint"
    " parent_checkpoint options",
    task_pb2.CreateTaskResponse: "pid",
    task_pb2.StartRequest: "id exec_id",
    task_pb2.StartResponse: "pid",
    task_pb2.DeleteRequest: "id exec_id",
    task_pb2.DeleteResponse: "pid exit_status exited_at",
    task_pb2.ExecProcessRequest: "id exec_id terminal stdin stdout stderr spec",
    task_pb2.ResizePtyRequest: "id exec_id width height",
    task_pb2.StateRequest: "id exec_id",
    task_pb2.StateResponse: "id bundle pid status stdin stdout stderr terminal exit_status"
    " exited_at exec_id",
    task_pb2.KillRequest: "id exec_id signal all",
    task_pb2.CloseIORequest: "id exec_id stdin",
    task_pb2.PidsRequest: "id",
    task_pb2.PidsResponse: "processes",
    task_pb2.PauseRequest: "id",
    task_pb2.ResumeRequest: "id",
    task_pb2.CheckpointTaskRequest: "id path options",
    task_pb2.UpdateTaskRequest: "id resources annotations",
    task_pb2.WaitRequest: "id exec_id",
    task_pb2.WaitResponse: "exit_status exited_at",
    task_pb2.StatsRequest: "id",
    task_pb2.StatsResponse: "stats",
    task_pb2.ConnectRequest: "id",
    task_pb2.ConnectResponse: "shim_pid task_pid version",
    task_pb2.ShutdownRequest: "id now",
    process_pb2.ProcessInfo: "pid info",
    options_pb2.Options: "no_pivot_root no_new_keyring shim_cgroup io_uid io_gid binary_name root"
    " - systemd_cgroup criu_image_path criu_work_path task_api_address task_api_version",
    options_pb2.CheckpointOptions: "exit open_tcp external_unix_sockets terminal file_locks"
    " empty_namespaces cgroups_mode image_path work_path parent_path",
    options_pb2.ProcessDetails: "exec_id",
    runtimeoptions_pb2.Options: "type_url config_path config_body",
    bootstrap_pb2.BootstrapParams: "instance_id namespace log_level containerd_version"
    " containerd_ttrpc_address containerd_grpc_address containerd_binary extensions socket_dir",
    bootstrap_pb2.Extension: "value",
    bootstrap_pb2.BootstrapResult: "version address protocol capabilities metadata",
}


@pytest.mark.parametrize("message", FIELDS, ids=lambda message: message.DESCRIPTOR.full_name)
def test_the_fields_of_a_message_have_the_numbers_managers_use(message: type[Message]) -> None:
    wanted = {name: n for n, name in enumerate(FIELDS[message].split(), 1) if name != "-"}
    # This project's own fields are far from containerd's.
    fields = [field for field in message.DESCRIPTOR.fields if field.number < 1000]
    assert {field.name: field.number for field in fields} == wanted


def test_a_services_methods_are_those_of_the_task_api() -> None:
    names = "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO"
    names += " Update Wait Stats Connect Shutdown"
    services = ("containerd.task.v3.Task", "containerd.task.v2.Task")
    wanted = {f"/{service}/{name}" for service in services for name in names.split()}
    assert handlers_of(FakeTask(), aliases=ALIASES).keys() == wanted


def test_the_states_have_the_numbers_managers_use() -> None:
    names = ["UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING"]
    assert process_pb2.Status.items() == [(name, n) for n, name in enumerate(names)]
