from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cgroup.v1 import CgroupV1
from shim.cgroup.v2 import CgroupV2
from shim.container.abandoned import own_part
from shim.container.members import Member, Members, directories_of
from shim.errors import InvalidError
from shim.runc.command import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from shim.cgroup.find import Cgroup

MEMBER = Member("c2", "/run/b/c2", Runtime("runc", "/run/runc/ns", True), 42, ("a/b",), True)


def first_bundle(directory: Path) -> Members:
    (directory / "c1").mkdir()
    return Members(str(directory / "c1"))


def test_what_is_noted_last_is_read_until_it_is_forgotten(tmp_path: Path) -> None:
    members = first_bundle(tmp_path)
    assert members.read() == []
    other = replace(MEMBER, id="c3")
    for member in (replace(MEMBER, pid=0, cgroups=()), MEMBER, other):
        members.note(member)
    assert members.read() == [MEMBER, other]
    for _ in range(2):
        members.forget("c2")
    assert members.read() == [other]


def test_the_first_container_is_not_noted_whatever_leads_to_its_bundle(tmp_path: Path) -> None:
    members = first_bundle(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    members.note(replace(MEMBER, bundle=str(tmp_path / "link/c1")))
    assert not list((tmp_path / "c1").iterdir())


def test_without_a_first_bundle_nothing_is_noted(tmp_path: Path) -> None:
    for members in (Members(), Members(str(tmp_path / "gone"))):
        members.note(MEMBER)
        members.forget("c2")
    assert not list(tmp_path.iterdir())


def test_a_note_that_was_never_finished_is_none(tmp_path: Path) -> None:
    members = first_bundle(tmp_path)
    members.note(MEMBER)
    (tmp_path / "c1/members/.c2").write_text(json.dumps(asdict(MEMBER)))
    assert members.read() == [MEMBER]


def test_a_note_under_another_name_is_none(tmp_path: Path) -> None:
    members = first_bundle(tmp_path)
    members.note(MEMBER)
    (tmp_path / "c1/members/c2").rename(tmp_path / "c1/members/c3")
    assert members.read() == []


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
        Member.parse(json.dumps({**asdict(MEMBER), field: value}))


@pytest.mark.parametrize("field", sorted(_SPOILT))
def test_a_note_that_lacks_something_is_refused(field: str) -> None:
    table = asdict(MEMBER)
    del table[field]
    with pytest.raises(InvalidError):
        Member.parse(json.dumps(table))


@given(st.binary(max_size=200))
def test_garbage_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidError):
        Member.parse(text)


def test_a_note_says_the_same_after_it_was_written() -> None:
    assert Member.parse(json.dumps(asdict(MEMBER))) == MEMBER


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
    assert directories_of(cgroup) == directories
    for name in directories:
        assert own_part(f"/{name}/deeper", directories) == f"/{name}"
