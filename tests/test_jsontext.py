"""JSON that is read and written without loss, and never with another error than ValueError."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.jsontext import Verbatim, as_runc_reads, dumps, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
)  # fmt: skip


@given(VALUES)
def test_ordinary_values_are_as_pythons_module_has_them(value: Any) -> None:
    assert loads(json.dumps(value)) == value
    assert loads(json.dumps(value, ensure_ascii=False).encode()) == value
    assert json.loads(dumps(value)) == value


@given(st.binary())
def test_bytes_in_a_string_come_out_as_they_were(data: bytes) -> None:
    plain = bytes(byte for byte in data if byte >= 0x20 and byte not in b'"\\')
    text = b'{"%s": ["%s"]}' % (plain, plain)
    assert dumps(loads(text)) == text


@given(st.text(st.characters(categories=["Cs", "Lu"])))
def test_halves_of_pairs_are_read_again_as_go_reads_them(text: str) -> None:
    written = dumps(loads(json.dumps(text)))
    # As bytes they are no UTF-8, as escapes no pair: the same to Go.
    assert as_runc_reads(loads(written)) == as_runc_reads(loads(json.dumps(text)))


@pytest.mark.parametrize(
    "number",
    ["9" * 5000, "-" + "1" * 100_000, "1e400", "-1E+999", "0.1000000000000000055511"],
)
def test_a_number_keeps_every_digit(number: str) -> None:
    text = f'{{"a": {{"b": [{number}, 1, 0.5]}}}}'.encode()
    value = loads(text)
    assert value["a"]["b"] == [Verbatim(number), 1, 0.5]
    assert dumps(value) == text


@pytest.mark.parametrize("depth", [1000, 9999, 100_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_a_value_of_any_depth_keeps_its_text(depth: int, pair: str) -> None:
    opened = '{"]": ' if pair == "{}" else "["
    nest = opened * depth + ('"[{\\"" ' if depth % 2 else "1e9 ") + pair[1] * depth
    text = f'{{"process": {{"cwd": "/"}}, "x": {nest}, "y": [{nest}, 2e1000000000]}}'
    value = loads(text)
    assert value["process"] == {"cwd": "/"}
    assert dumps(value) == text.encode()


@pytest.mark.parametrize("deep", ["[]", "[" * 5000 + "]" * 5000])
def test_members_that_are_null_are_left_out_if_wanted(deep: str) -> None:
    text = f'{{"a": null, "b": [null, {{"c": null, "d": 1}}], "e": {deep}}}'
    assert loads(text)["a"] is None
    value = loads(text, nulls=False)
    assert value["b"] == [None, {"d": 1}]
    assert dumps(value) == f'{{"b": [null, {{"d": 1}}], "e": {deep}}}'.encode()


def test_values_that_python_reads_and_cannot_write_are_written() -> None:
    value: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 3):
        value = [value, {"ü\udcff": None}]
    assert dumps(value).startswith(b"[[[[")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "[" * 100_000 + "}" * 100_000, "NaN", "[Infinity]", "-Infinity"]
    + ['{"a" 1}', "\ufeff{}", '"\x01"', '"' + "[" * 5000, "[" * 2000 + "]" * 2001, "1 2"],
)
def test_what_is_not_json_is_a_value_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        loads(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 100


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        dumps(loads(data))


def test_other_objects_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="a set is not JSON"):
        dumps({"a": {1}})
