"""The receiving end of events, on all three faces: the acknowledged events, and the effect of a
bad sender.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import shimctl
from shim.api import events_pb2
from shim.api.envelope_pb2 import Envelope
from shim.api.forward_grpc import EventsStub
from shim.api.forward_pb2 import ForwardRequest
from shim.errors import ExistsError, InvalidError, UnsupportedError
from shim.ttrpc import blocking
from tests.shimctl.test_strangers import open_files
from tests.shimctl.threaded import LISTENERS, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shimctl import Event

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def exit_of(container: str, at: int = 1) -> ForwardRequest:
    event = events_pb2.TaskExit(container_id=container, id=container, pid=7, exit_status=3)
    return ForwardRequest(
        envelope=Envelope(
            timestamp=Timestamp(seconds=at),
            namespace="ns",
            topic="/tasks/exit",
            event=AnyMessage(
                type_url="containerd.events.TaskExit", value=event.SerializeToString()
            ),
        )
    )


@pytest.fixture(params=LISTENERS)
def listen(request: pytest.FixtureRequest) -> Any:
    """Serve events on a face, for a block; nothing is left open after it."""

    @contextmanager
    def listen(path: Path, handler: Callable[[Event], object]) -> Iterator[None]:
        before, threads = open_files(), set(threading.enumerate())
        with LISTENERS[request.param](path, handler):
            yield
        assert open_files() == before
        assert set(threading.enumerate()) <= threads  # trio keeps idle ones of others for a while
        assert not path.exists()

    return listen


@contextmanager
def sender(path: Path) -> Iterator[Callable[[ForwardRequest], None]]:
    sock = blocking.connect(f"unix://{path}")
    with blocking.open_channel(sock) as channel:
        stub = EventsStub(channel)

        def send(request: ForwardRequest) -> None:
            blocking.run(stub.Forward(request, timeout=PATIENCE))

        yield send


def test_an_event_is_acknowledged_when_it_was_handled(listen: Any, tmp_path: Path) -> None:
    seen: list[Event] = []
    with listen(tmp_path / "s", seen.append), sender(tmp_path / "s") as send:
        for number in range(50):
            send(exit_of(f"c{number}"))
            assert len(seen) == number + 1
    assert [event.container_id for event in seen if isinstance(event, shimctl.TaskExit)] == [
        f"c{n}" for n in range(50)
    ]
    assert (seen[0].topic, seen[0].namespace) == ("/tasks/exit", "ns")
    assert isinstance(seen[0], shimctl.TaskExit)
    assert seen[0].exit_status == 3


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        OSError(errno.EINVAL, "the disk is full"),
        InvalidError("no"),
        UnsupportedError("no"),
        GRPCError(Status.UNIMPLEMENTED, "no"),
        TimeoutError("no"),
        ExceptionGroup("two", [ValueError("a"), ValueError("b")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_handler_raises_the_event_is_to_be_sent_again(
    listen: Any, error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some statuses mean for a shim that an event will never be accepted: none of those."""
    seen: list[Event] = []

    def handler(event: Event) -> None:
        seen.append(event)
        if len(seen) == 1:
            raise error

    with listen(tmp_path / "s", handler), sender(tmp_path / "s") as send:
        with pytest.raises(GRPCError, match="the handler failed") as caught:
            send(exit_of("c"))
        assert caught.value.status is Status.UNAVAILABLE
        send(exit_of("c"))
        send(exit_of("c", at=2))
    first, again, other = seen
    assert first == again, "the same event is equal"
    assert other != first
    assert [record.name for record in caplog.records] == ["shimctl"]


def test_foreign_clients_cost_the_others_nothing(listen: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    seen: list[Event] = []
    with listen(path, seen.append), sender(path) as send:
        strangers = []
        for said in (b"", b"\0\0", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000)):
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stranger.connect(str(path))
            stranger.sendall(said)
            strangers.append(stranger)
            send(exit_of("c"))
        # Asks and never reads the answers; goes in the middle of a frame.
        for number in range(1, 20_000, 2):
            frame = b"\0\0\0\2" + number.to_bytes(4, "big") + b"\1\0\xff\xff"
            try:
                strangers[0].send(frame, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        send(exit_of("c"))
        for stranger in strangers:
            stranger.close()
        send(exit_of("c"))
    assert len(seen) == 6


def test_a_request_that_is_no_event_is_refused(listen: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    seen: list[Event] = []
    with listen(path, seen.append):
        with blocking.open_channel(blocking.connect(f"unix://{path}")) as channel:
            stub = EventsStub(channel)
            stub.Forward.name = stub.Forward.name.replace("Forward", "Unheard")
            with pytest.raises(GRPCError) as caught:
                blocking.run(stub.Forward(exit_of("c"), timeout=PATIENCE))
        assert caught.value.status is Status.UNIMPLEMENTED
        with sender(path) as send:
            send(ForwardRequest())  # nothing in it is still an event
    assert [(event.topic, event.at, type(event)) for event in seen] == [
        ("", None, shimctl.UnknownEvent)
    ]


def test_the_socket_is_ours_alone_and_a_dead_ones_is_replaced(listen: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with listen(path, print):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        with pytest.raises(ExistsError, match="listens there"), listen(path, print):
            pass
        assert path.exists()


def test_a_path_that_cannot_be_one_is_a_clear_error(listen: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidError, match="a socket's path has at most 107"),
        listen(tmp_path / ("x" * 200), print),
    ):
        pass
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InvalidError, match="is not a socket"), listen(tmp_path / "file", print):
        pass
    assert (tmp_path / "file").read_text() == "kept"
    with (
        pytest.raises(InvalidError, match="is not a directory"),
        listen(tmp_path / "file" / "s", print),
    ):
        pass


def test_a_socket_that_somebody_put_in_place_of_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as theirs:
        with LISTENERS["threads"](path, print):
            path.unlink()
            theirs.bind(str(path))
        assert path.exists()
