from __future__ import annotations

import pytest
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc import wire_pb2
from shim.ttrpc.frames import MAX_PAYLOAD, Flag, Frame, FrameDecoder, Kind, TooBigError
from shim.ttrpc.protocol import ClientProtocol, RequestReceived, ResponseReceived, ServerProtocol


def request(stream_id: int, *, flags: Flag = Flag.NONE, timeout_nano: int = 0) -> bytes:
    message = wire_pb2.Request(service="s.S", method="M", timeout_nano=timeout_nano)
    return Frame(stream_id, Kind.REQUEST, message.SerializeToString(), flags).encode()


def replies(server: ServerProtocol) -> list[ResponseReceived]:
    return ClientProtocol().receive_data(server.data_to_send())


def refusal(data: bytes, *, after: bytes = b"") -> ResponseReceived:
    """Feed ``data``, which must get one error and cost the next stream nothing."""
    server = ServerProtocol()
    server.receive_data(after)
    assert server.receive_data(data) == []
    [reply] = replies(server)
    assert server.receive_data(request(99)) == [RequestReceived(99, "s.S", "M", b"")]
    assert replies(server) == []
    return reply


@given(
    st.text(),
    st.text(),
    st.binary(),
    st.none() | st.floats(0.001, 1e6),
    st.dictionaries(st.text("abc-"), st.text()),
    st.integers(1, 30),
)
def test_a_request_arrives_as_it_was_made(
    service: str,
    method: str,
    payload: bytes,
    timeout: float | None,
    metadata: dict[str, str],
    chunk: int,
) -> None:
    stream_id, wire = ClientProtocol().encode_request(
        service, method, payload, timeout=timeout, metadata=metadata
    )
    server, events = ServerProtocol(), list[RequestReceived]()
    for i in range(0, len(wire), chunk):
        events += server.receive_data(wire[i : i + chunk])
    [event] = events
    assert event.stream_id == stream_id == 1
    assert (event.service, event.method, event.payload) == (service, method, payload)
    assert event.timeout == (None if timeout is None else pytest.approx(timeout))
    assert event.metadata == {key: [value] for key, value in metadata.items()}


@given(st.binary(min_size=1))
def test_a_reply_arrives_as_it_was_made(payload: bytes) -> None:
    server = ServerProtocol()
    server.send_reply(3, payload)
    assert replies(server) == [ResponseReceived(3, Status.OK, "", payload)]


def test_an_empty_success_is_a_frame_without_payload() -> None:
    server = ServerProtocol()
    server.send_reply(7, b"")
    assert server.data_to_send() == b"\0\0\0\0\0\0\0\x07\x02\0"
    assert server.data_to_send() == b""


def test_a_zero_length_request_is_valid() -> None:
    data = Frame(1, Kind.REQUEST).encode()
    assert ServerProtocol().receive_data(data) == [RequestReceived(1, "", "", b"")]


@given(st.lists(st.binary(max_size=80), max_size=12))
def test_fuzzed_bytes_never_raise(chunks: list[bytes]) -> None:
    server, client = ServerProtocol(), ClientProtocol()
    for chunk in chunks:
        server.receive_data(chunk)
        client.receive_data(chunk)
    FrameDecoder().receive(server.data_to_send())


any_frames = st.builds(
    Frame, st.integers(0, 50), st.integers(0, 4), st.binary(max_size=30), st.integers(0, 255)
)


@given(st.lists(any_frames))
def test_fuzzed_frames_never_cost_another_stream(frames: list[Frame]) -> None:
    server = ServerProtocol()
    for frame in frames:
        server.receive_data(frame.encode())
    touched = {frame.stream_id for frame in frames}
    assert {reply.stream_id for reply in replies(server)} <= touched
    assert server.receive_data(request(51)) == [RequestReceived(51, "s.S", "M", b"")]


def test_an_even_stream_id_is_refused() -> None:
    assert refusal(request(2)).status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("stream_id", [1, 3, 5])
def test_a_stream_id_is_never_used_again(stream_id: int) -> None:
    reply = refusal(request(stream_id), after=request(5))
    assert (reply.stream_id, reply.status) == (stream_id, Status.INVALID_ARGUMENT)
    assert reply.message == "StreamID cannot be re-used and must increment"


def test_a_malformed_request_is_refused() -> None:
    reply = refusal(Frame(1, Kind.REQUEST, b"\xff").encode())
    assert (reply.stream_id, reply.status) == (1, Status.INVALID_ARGUMENT)


def test_an_oversize_request_is_refused() -> None:
    length = MAX_PAYLOAD + 1
    data = length.to_bytes(4) + (1).to_bytes(4) + bytes([Kind.REQUEST, 0]) + bytes(length)
    reply = refusal(data)
    assert (reply.stream_id, reply.status) == (1, Status.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("kind", [Kind.RESPONSE, Kind.DATA, 0, 4, 255])
def test_what_is_not_a_request_is_ignored(kind: int) -> None:
    server = ServerProtocol()
    assert server.receive_data(Frame(1, kind, b"\xff", Flag.REMOTE_CLOSED).encode()) == []
    assert server.data_to_send() == b""
    assert len(server.receive_data(request(1))) == 1


@pytest.mark.parametrize("flags", [Flag.REMOTE_OPEN, Flag.REMOTE_CLOSED, Flag(0xF8)])
def test_the_flags_of_a_request_are_ignored(flags: Flag) -> None:
    assert len(ServerProtocol().receive_data(request(1, flags=flags))) == 1


def test_timeouts_are_seconds_and_may_have_passed() -> None:
    server = ServerProtocol()
    data = request(1, timeout_nano=1_500_000_000) + request(3, timeout_nano=-1) + request(5)
    first, second, third = server.receive_data(data)
    assert first.timeout == 1.5
    assert second.timeout is not None
    assert second.timeout < 0
    assert third.timeout is None


@pytest.mark.parametrize("timeout", [0, -3, 1e-12, float("-inf")])
def test_no_time_left_is_never_sent_as_no_limit(timeout: float) -> None:
    _, wire = ClientProtocol().encode_request("s.S", "M", b"", timeout=timeout)
    [event] = ServerProtocol().receive_data(wire)
    assert event.timeout is not None
    assert event.timeout < 0


def test_an_endless_timeout_can_be_sent() -> None:
    _, wire = ClientProtocol().encode_request("s.S", "M", b"", timeout=float("inf"))
    [event] = ServerProtocol().receive_data(wire)
    assert event.timeout is not None
    assert event.timeout > 1e9


def test_metadata_keys_are_lower_case_and_repeat() -> None:
    message = wire_pb2.Request(service="s.S", method="M")
    for key, value in [("A-Key", "1"), ("a-key", "2"), ("b", "")]:
        message.metadata.add(key=key, value=value)
    data = Frame(1, Kind.REQUEST, message.SerializeToString()).encode()
    [event] = ServerProtocol().receive_data(data)
    assert event.metadata == {"a-key": ["1", "2"], "b": [""]}


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_an_error_keeps_its_status_and_message(status: Status) -> None:
    server = ServerProtocol()
    server.send_error(9, status, "why")
    assert replies(server) == [ResponseReceived(9, status, "why")]


def test_an_error_about_a_path_that_is_not_text_can_be_sent() -> None:
    server = ServerProtocol()
    server.send_error(1, Status.NOT_FOUND, "no /tmp/\udcff\n\x1b[2J")
    said = "no /tmp/\\xff\\n\\x1b[2J"
    assert replies(server) == [ResponseReceived(1, Status.NOT_FOUND, said)]


def test_an_endless_error_message_is_cut() -> None:
    server = ServerProtocol()
    server.send_error(1, Status.UNKNOWN, "x" * (MAX_PAYLOAD + 1))
    [reply] = replies(server)
    assert reply.message == "x" * 65536


def test_a_reply_that_does_not_fit_becomes_an_error() -> None:
    server = ServerProtocol()
    server.send_reply(1, bytes(MAX_PAYLOAD))
    [reply] = replies(server)
    assert reply.status is Status.RESOURCE_EXHAUSTED


def test_a_request_that_does_not_fit_uses_up_no_id() -> None:
    client = ClientProtocol()
    with pytest.raises(TooBigError):
        client.encode_request("s.S", "M", bytes(MAX_PAYLOAD))
    assert client.encode_request("s.S", "M", b"")[0] == 1
    assert client.encode_request("s.S", "M", b"")[0] == 3


def test_a_status_nobody_knows_is_unknown() -> None:
    response = wire_pb2.Response(status=wire_pb2.Status(code=4711, message="?"))
    data = Frame(1, Kind.RESPONSE, response.SerializeToString()).encode()
    assert ClientProtocol().receive_data(data) == [ResponseReceived(1, Status.UNKNOWN, "?")]


def test_a_malformed_response_is_an_error_of_its_own_call() -> None:
    data = Frame(1, Kind.RESPONSE, b"\xff").encode() + Frame(3, Kind.RESPONSE).encode()
    first, second = ClientProtocol().receive_data(data)
    assert (first.stream_id, first.status) == (1, Status.INTERNAL)
    assert second == ResponseReceived(3, Status.OK)


def test_an_oversize_response_is_an_error_of_its_own_call() -> None:
    length = MAX_PAYLOAD + 1
    header = length.to_bytes(4) + (5).to_bytes(4) + bytes([Kind.RESPONSE, 0])
    [response] = ClientProtocol().receive_data(header)
    assert (response.stream_id, response.status) == (5, Status.RESOURCE_EXHAUSTED)


def test_a_client_ignores_what_is_not_a_response() -> None:
    data = Frame(1, Kind.DATA, b"x").encode() + Frame(1, 77, b"x").encode() + request(1)
    assert ClientProtocol().receive_data(data) == []


@pytest.mark.parametrize(("stream_id", "foreign"), [(1, False), (2, True), (3, False), (5, True)])
def test_an_answer_on_a_stream_that_was_never_opened_is_foreign(
    stream_id: int, foreign: bool
) -> None:
    client = ClientProtocol()
    for _ in range(2):  # streams 1 and 3
        client.encode_request("s.S", "M", b"")
    client.receive_data(Frame(stream_id, Kind.RESPONSE, b"").encode())
    assert client.foreign is foreign


def test_unsent_is_how_many_bytes_there_are_to_send() -> None:
    server = ServerProtocol()
    assert server.unsent == 0
    server.send_reply(1, b"reply")
    server.send_error(3, Status.INTERNAL, "error")
    unsent, data = server.unsent, server.data_to_send()
    assert (unsent, server.unsent) == (len(data), 0)
    server.send_reply(5, b"")
    server.put_back(data[4:])  # the socket took four bytes
    unsent, rest = server.unsent, server.data_to_send()
    assert unsent == len(rest)
    assert rest.startswith(data[4:])
