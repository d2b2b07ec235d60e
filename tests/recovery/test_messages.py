"""The messages between a daemon and the keeper of its fds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shim.recovery.messages import MAX_FDS, MAX_MESSAGE, PUT, decode, encode, split

NAMES = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=300))


@given(NAMES)
def test_a_message_is_decoded_as_it_was_encoded(names: list[str]) -> None:
    assert decode(encode(PUT, *names)) == (PUT, names)


@given(st.lists(st.text("ab/-", max_size=300), max_size=300))
def test_many_names_are_split_into_messages_that_fit(names: list[str]) -> None:
    parts = split(names)
    assert [name for part in parts for name in part] == names
    assert all(0 < len(part) <= MAX_FDS for part in parts)
    assert all(len(encode(PUT, *part)) <= MAX_MESSAGE for part in parts)
