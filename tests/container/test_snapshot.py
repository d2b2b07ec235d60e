"""The state of a container as JSON: it is read as it was written, or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.container.lifecycle import State
from shim.container.snapshot import (
    Constants,
    ContainerSnapshot,
    Encoder,
    ProcessSnapshot,
    parse,
)
from shim.errors import InvalidError
from shim.exit import Exit
from shim.recovery.versions import CONTAINER

texts = st.text(max_size=8)
# Paths of a request may hold bytes that are not UTF-8.
ids = st.text("abc.-_09", min_size=1, max_size=8)
exits = st.builds(Exit, st.integers(0, 1 << 22), st.integers(0, 255), st.integers(0), texts)
processes = st.builds(
    ProcessSnapshot,
    texts,
    st.fixed_dictionaries({"stdin": texts, "terminal": st.booleans()}),
    st.sampled_from(State),
    st.sampled_from(["", "Start", "Delete"]),
    st.integers(0, 1 << 22),
    st.none() | exits,
    st.booleans(),
    st.none() | st.fixed_dictionaries({"spec": st.lists(texts)}),
)
constants = st.builds(
    Constants,
    st.binary(max_size=64),
    st.dictionaries(texts, st.booleans() | texts, max_size=3),
    st.dictionaries(texts, st.booleans() | texts, max_size=3),
)
snapshots = st.builds(
    ContainerSnapshot,
    processes,
    st.lists(processes, max_size=3).map(tuple),
    st.sampled_from(["", "Create", "Pause"]),
    st.binary(max_size=64),
    st.dictionaries(ids, exits, max_size=3),
    st.dictionaries(texts, texts, max_size=3),
    st.none() | st.tuples(st.dictionaries(texts, st.integers(), max_size=3), st.integers()),
    st.none() | st.lists(texts, max_size=3).map(tuple),
    constants,
)


def encoded(snapshot: ContainerSnapshot) -> bytes:
    assert snapshot.constants is not None
    return Encoder(snapshot.constants).encode(snapshot)


@given(snapshots)
def test_a_snapshot_is_read_as_it_was_written(snapshot: ContainerSnapshot) -> None:
    assert parse(encoded(snapshot)) == snapshot


@given(snapshots, snapshots)
def test_snapshots_are_read_as_written_though_texts_are_kept(
    before: ContainerSnapshot, after: ContainerSnapshot
) -> None:
    """Most snapshots of a container differ from the last one in a single part."""
    assert before.constants is not None
    encoder = Encoder(before.constants)
    for name in ContainerSnapshot._fields[:-1]:  # the last one is constant
        for wanted in (before, before._replace(**{name: getattr(after, name)})):
            assert parse(encoder.encode(wanted)) == wanted


def example() -> ContainerSnapshot:
    return ContainerSnapshot(ProcessSnapshot("", {}), constants=Constants(b"", {}, {}))


def test_a_snapshot_of_another_version_is_refused_by_number() -> None:
    value = json.loads(encoded(example()))
    value["version"] = CONTAINER + 1
    text = f"cannot read version {CONTAINER + 1} of the container state; it reads {CONTAINER}"
    with pytest.raises(InvalidError, match=text):
        parse(json.dumps(value).encode())


@pytest.mark.parametrize("field", list(json.loads(encoded(example()))))
def test_a_snapshot_without_one_of_its_fields_is_refused(field: str) -> None:
    value = json.loads(encoded(example()))
    del value[field]
    with pytest.raises(InvalidError, match="cannot restore a container"):
        parse(json.dumps(value).encode())


@given(st.binary(max_size=32) | st.sampled_from([b"null", b"[]", b'{"version": 1, "init": 7}']))
def test_bytes_that_are_no_snapshot_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        parse(data)
