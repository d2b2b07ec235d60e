from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError
from shimctl.attach.keys import KeyFilter, parse_keys

# Few characters, so that the keys come often, and overlap with themselves.
TYPED = st.lists(st.text("ab", max_size=4).map(str.encode), max_size=8)


def test_keys_are_named_as_in_docker() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_") == b"\0\x1b\x1c\x1d\x1e\x1f"
    assert parse_keys("CTRL-A,x") == b"\x01x"
    assert parse_keys("") == b""


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ctrl-ab", "ab", "a,,b", "ü", "\n", "a,"])
def test_what_is_no_key_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a key"):
        parse_keys(text)


@given(st.text("ab", min_size=1, max_size=3).map(str.encode), TYPED)
def test_the_keys_are_found_wherever_reads_cut_them(keys: bytes, typed: list[bytes]) -> None:
    whole = b"".join(typed)
    keyfilter = KeyFilter(keys)
    passed = b"".join(map(keyfilter.feed, typed))
    assert keyfilter.found == (keys in whole)
    if keyfilter.found:
        assert passed == whole.partition(keys)[0]
    else:
        assert whole.startswith(passed)
        held = whole[len(passed) :]
        assert len(held) < len(keys)
        assert keys.startswith(held)


@given(TYPED)
def test_without_keys_everything_is_passed_on_at_once(typed: list[bytes]) -> None:
    keyfilter = KeyFilter(b"")
    assert [keyfilter.feed(data) for data in typed] == typed
    assert not keyfilter.found


def test_a_first_key_twice_is_passed_on_once() -> None:
    keyfilter = KeyFilter(b"\x10\x11")
    assert [keyfilter.feed(bytes([key])) for key in b"\x10\x10\x11"] == [b"", b"\x10", b""]
    assert keyfilter.found
