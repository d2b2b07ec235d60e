"""The journal's format: a damaged record is lost, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from shim.events.encoding import DONE, HEADER, WAITS, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

payloads = st.lists(st.binary(max_size=40), max_size=8)


@st.composite
def journals(draw: st.DrawFn) -> tuple[list[bytes], int, bytes]:
    """Draw events, how many of them are acknowledged, and the file they make."""
    # Numbered, so that the order can be checked.
    events = [bytes([number]) + body for number, body in enumerate(draw(payloads))]
    acknowledged = draw(st.integers(0, len(events)))
    return events, acknowledged, journal(events, acknowledged)


def journal(events: Sequence[bytes], acknowledged: int) -> bytes:
    written = [encode(event) for event in events]
    return b"".join(
        DONE + one[len(DONE) :] if number < acknowledged else one
        for number, one in enumerate(written)
    )


def waiting(data: bytes) -> list[bytes]:
    return [record.payload for record in decode(data).waiting]


def span(events: Sequence[bytes], number: int) -> range:
    begin = sum(HEADER + len(event) for event in events[:number])
    return range(begin, begin + HEADER + len(events[number]))


@given(journals())
def test_what_is_not_acknowledged_is_found_in_order(
    drawn: tuple[list[bytes], int, bytes],
) -> None:
    events, acknowledged, data = drawn
    reading = decode(data)
    assert [record.payload for record in reading.waiting] == events[acknowledged:]
    assert (reading.end, reading.damaged) == (len(data), 0)
    for record in reading.waiting:
        assert data[record.offset : record.offset + len(WAITS)] == WAITS


@given(journals(), st.data())
def test_a_cut_anywhere_loses_what_was_cut_and_nothing_else(
    drawn: tuple[list[bytes], int, bytes], data: st.DataObject
) -> None:
    events, acknowledged, whole = drawn
    cut = data.draw(st.integers(0, len(whole)))
    numbers = range(acknowledged, len(events))
    left = [events[n] for n in numbers if span(events, n).stop <= cut]
    reading = decode(whole[:cut])
    assert [record.payload for record in reading.waiting] == left
    assert reading.end + reading.damaged == cut


@given(journals(), st.data())
def test_a_changed_byte_anywhere_loses_at_most_the_record_it_is_in(
    drawn: tuple[list[bytes], int, bytes], data: st.DataObject
) -> None:
    events, acknowledged, whole = drawn
    if not whole:
        return
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    [hit] = [n for n in range(len(events)) if at in span(events, n)]
    kept = [events[n] for n in range(acknowledged, len(events)) if n != hit]
    assert waiting(bytes(changed)) == kept


@given(journals(), st.binary(max_size=30), st.integers(0, 30), st.data())
def test_bytes_lost_and_added_anywhere_bring_nothing_back(
    drawn: tuple[list[bytes], int, bytes], added: bytes, lost: int, data: st.DataObject
) -> None:
    events, acknowledged, whole = drawn
    at = data.draw(st.integers(0, len(whole)))
    found = waiting(whole[:at] + added + whole[at + lost :])
    numbers = [event[0] for event in found]
    assert numbers == sorted(set(numbers))
    spans = {n: span(events, n) for n in range(acknowledged, len(events))}
    touched = range(at, at + lost)
    whole_ones = [n for n, s in spans.items() if s.stop <= at or s.start >= max(at, touched.stop)]
    assert set(whole_ones) <= set(numbers) <= set(spans)


@given(st.binary(max_size=200))
def test_garbage_is_no_event(garbage: bytes) -> None:
    assert waiting(garbage) == []
    assert decode(garbage).damaged == len(garbage)


@given(st.binary(max_size=100), payloads)
def test_what_follows_garbage_is_found(garbage: bytes, events: list[bytes]) -> None:
    assert waiting(garbage + journal(events, 0)) == events


def test_a_length_beyond_all_bounds_reaches_no_further_than_the_next_record() -> None:
    torn = encode(b"torn")[:4] + b"\xff\xff\xff\xff" + encode(b"torn")[8:]
    assert waiting(torn + encode(b"next")) == [b"next"]
