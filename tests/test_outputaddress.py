"""Where a stream goes, byte by byte, as Go's shim reads it."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shim.errors import InvalidError
from shim.outputaddress import Address, address_of_file, parse_address

BYTES = st.binary(min_size=1).filter(lambda data: b"\0" not in data)


@given(BYTES)
@example(b"caf\xe9?#%41\n")
def test_a_file_may_have_every_name(name: bytes) -> None:
    path = b"/" + name
    assert parse_address(address_of_file(path)) == Address("file", os.fsdecode(path))


@given(st.lists(st.tuples(BYTES, BYTES), unique_by=lambda pair: pair[0]))
def test_arguments_are_bytes(pairs: list[tuple[bytes, bytes]]) -> None:
    octets = [["".join(f"%{byte:02X}" for byte in word) for word in pair] for pair in pairs]
    query = "&".join(f"{key}={value}" for key, value in octets)
    address = parse_address(f"binary:///logger?{query}")
    assert list(address.arguments) == [os.fsdecode(word) for pair in pairs for word in pair]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("file:/log", Address("file", "/log")),
        ("file:///log", Address("file", "/log")),
        ("FILE://host/log#part", Address("file", "/log")),
        ("file:////log", Address("file", "//log")),
        ("file://[/log", Address("file", "/log")),
        ("fifo:/f", Address("path", "/f")),
        ("binary:/log?a", Address("binary", "/log", ("a", ""))),
        ("binary-v2:///log?a=/b%3Fc&a=2", Address("binary-v2", "/log", ("a", "/b?c"))),
        ("/a:b", Address("path", "/a:b")),
        ("./file:/a", Address("path", "./file:/a")),
        ("/a://b", Address("path", "/a://b")),
        ("", Address("path", "")),
    ],
)
def test_what_is_a_url_is_what_go_takes_for_one(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["/a\0b", "file:///a%00b", "binary:///a?b%00=c", "binary:///a?b=%00", "file:a", "file://a"]
    + ["http://a/b", "a:b", "file:///a\nb", "binary:///a?\x7f", "file:"],
)
def test_what_nothing_can_be_opened_by_is_invalid(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    for address in (text, f"file://{text}", f"binary:///a?{text}"):
        with contextlib.suppress(InvalidError):
            parse_address(address)
