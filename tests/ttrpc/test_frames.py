from __future__ import annotations

import pytest
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc.frames import MAX_PAYLOAD, Flag, Frame, FrameDecoder, Kind, Oversize, TooBigError

ids = st.integers(0, 2**32 - 1)
kinds = st.integers(0, 255)
frames = st.builds(
    Frame, ids, kinds, st.binary(max_size=60), st.integers(0, 255).map(lambda bits: Flag(bits))
)
oversizes = st.builds(Oversize, ids, kinds, st.integers(MAX_PAYLOAD + 1, MAX_PAYLOAD + 50))


def wire_of(item: Frame | Oversize) -> bytes:
    if isinstance(item, Frame):
        return item.encode()
    header = item.length.to_bytes(4) + item.stream_id.to_bytes(4) + bytes([item.kind, 0])
    return header + bytes(item.length)


def test_the_header_is_ten_bytes_in_network_order() -> None:
    frame = Frame(0x01020304, Kind.DATA, b"ab", Flag.REMOTE_CLOSED | Flag.NO_DATA)
    assert frame.encode() == b"\0\0\0\x02\x01\x02\x03\x04\x03\x05ab"


@given(st.lists(frames, max_size=5), st.integers(1, 40))
def test_frames_survive_any_chunking(sent: list[Frame], chunk: int) -> None:
    wire = b"".join(frame.encode() for frame in sent)
    decoder, received = FrameDecoder(), list[Frame | Oversize]()
    for i in range(0, len(wire), chunk):
        received += decoder.receive(wire[i : i + chunk])
    assert received == sent


@given(
    st.lists(frames, max_size=2),
    oversizes,
    st.lists(frames, max_size=2),
    st.integers(60_000, 5_000_000),
)
def test_an_oversize_frame_costs_only_itself(
    before: list[Frame], big: Oversize, after: list[Frame], chunk: int
) -> None:
    sent: list[Frame | Oversize] = [*before, big, *after]
    wire = b"".join(wire_of(item) for item in sent)
    decoder, received = FrameDecoder(), list[Frame | Oversize]()
    for i in range(0, len(wire), chunk):
        received += decoder.receive(wire[i : i + chunk])
    assert received == sent


def test_the_body_of_an_oversize_frame_is_not_kept() -> None:
    decoder = FrameDecoder()
    assert decoder.receive(b"\xff" * 10) == [Oversize(2**32 - 1, 255, 2**32 - 1)]
    for _ in range(100):
        assert decoder.receive(bytes(65536)) == []
        assert len(decoder._buffer) == 0


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_any_bytes_are_frames_of_some_kind(chunks: list[bytes]) -> None:
    decoder = FrameDecoder()
    for chunk in chunks:
        decoder.receive(chunk)


def test_the_limit_itself_is_allowed() -> None:
    frame = Frame(1, Kind.REQUEST, bytes(MAX_PAYLOAD))
    assert FrameDecoder().receive(frame.encode()) == [frame]


def test_a_frame_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(TooBigError) as caught:
        Frame(1, Kind.REQUEST, bytes(MAX_PAYLOAD + 1)).encode()
    assert caught.value.status is Status.RESOURCE_EXHAUSTED
