from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.container.cleanup_records import CleanupRecord, CleanupRecords, cgroup_names_of
from shim.container.orphaned import own_part
from shim.errors import InvalidError
from shim.runc.command import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from shim.cgroup.find import Cgroup

RECORD = CleanupRecord(
    "c2", "/run/b/c2", Runtime("runc", "/run/runc/ns", True), 42, ("a/b",), True
)


def first_bundle(directory: Path) -> CleanupRecords:
    (directory / "c1").mkdir()
    return CleanupRecords(str(directory / "c1"))


def test_what_is_noted_last_is_read_until_it_is_forgotten(tmp_path: Path) -> None:
    records = first_bundle(tmp_path)
    assert records.read() == []
    other = replace(RECORD, id="c3")
    for record in (replace(RECORD, pid=0, cgroups=()), RECORD, other):
        records.write(record)
    assert records.read() == [RECORD, other]
    for _ in range(2):
        records.remove("c2")
    assert records.read() == [other]


def test_the_first_container_is_not_noted_whatever_leads_to_its_bundle(tmp_path: Path) -> None:
    records = first_bundle(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    records.write(replace(RECORD, bundle=str(tmp_path / "link/c1")))
    assert not list((tmp_path / "c1").iterdir())


def test_without_a_first_bundle_nothing_is_noted(tmp_path: Path) -> None:
    for records in (CleanupRecords(), CleanupRecords(str(tmp_path / "gone"))):
        records.write(RECORD)
        records.remove("c2")
    assert not list(tmp_path.iterdir())


def test_a_note_that_was_never_finished_is_none(tmp_path: Path) -> None:
    records = first_bundle(tmp_path)
    records.write(RECORD)
    (tmp_path / "c1/members/.c2").write_text(json.dumps(asdict(RECORD)))
    assert records.read() == [RECORD]


def test_a_note_that_cannot_be_read_hides_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes = first_bundle(tmp_path)
    record = CleanupRecord("c2", str(tmp_path / "c2"), Runtime("runc", "/run/runc"), 7)
    notes.write(record)
    (tmp_path / "c1/members/a").write_text("{")
    (tmp_path / "c1/members/b").mkdir()
    assert notes.read() == [record]
    assert capfd.readouterr().err.count("cannot read a cleanup record") == 2


def test_a_note_under_another_name_is_none(tmp_path: Path) -> None:
    records = first_bundle(tmp_path)
    records.write(RECORD)
    (tmp_path / "c1/members/c2").rename(tmp_path / "c1/members/c3")
    assert records.read() == []


_SPOILT: dict[str, list[object]] = {
    "id": [None, 1, "", "..", "a/b", "a" * 77],
    "bundle": [None, "", "relative", "/a\0b"],
    "runtime": [None, {}, {"binary": "", "root": "", "systemd_cgroup": False}],
    "pid": [None, "1", 1.5],
    "cgroups": [None, "a", [1], [None], {}],
    "own_pid_namespace": [None, 1, ""],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in _SPOILT for value in _SPOILT[field]]
)
def test_a_note_with_a_wrong_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidError):
        CleanupRecord.parse(json.dumps({**asdict(RECORD), field: value}))


@pytest.mark.parametrize("field", sorted(_SPOILT))
def test_a_note_that_lacks_something_is_refused(field: str) -> None:
    table = asdict(RECORD)
    del table[field]
    with pytest.raises(InvalidError):
        CleanupRecord.parse(json.dumps(table))


@given(st.binary(max_size=200))
def test_garbage_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidError):
        CleanupRecord.parse(text)


def test_a_note_says_the_same_after_it_was_written() -> None:
    assert CleanupRecord.parse(json.dumps(asdict(RECORD))) == RECORD


@pytest.mark.parametrize(
    ("cgroup", "directories"),
    [
        (None, ()),
        (CgroupV2("/sys/fs/cgroup/a/b"), ("sys/fs/cgroup/a/b",)),
        (
            CgroupV1({"cpu": "/sys/fs/cgroup/c/a", "cpuacct": "/sys/fs/cgroup/c/a", "pids": "/p"}),
            ("sys/fs/cgroup/c/a", "p"),
        ),
    ],
)
def test_directories_are_names_the_clean_up_finds(
    cgroup: Cgroup | None, directories: tuple[str, ...]
) -> None:
    assert cgroup_names_of(cgroup) == directories
    for name in directories:
        assert own_part(f"/{name}/deeper", directories) == f"/{name}"
