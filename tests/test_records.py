"""Exit records: whole or absent, after any damage of the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.exit import Exit
from shim.records import exit_file, read_exit, remove_exit, write_exit
from tests.events.disks import listening, mounted

SEVEN = Exit(4711, 7, 1_700_000_000_123_456_789)
records = st.builds(
    Exit,
    pid=st.integers(0, 1 << 22),
    exit_status=st.integers(0, (1 << 32) - 1),
    exited_at=st.integers(1, 253_402_300_799 * 10**9),
    reason=st.text(max_size=200),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("bundle"))


@given(records)
def test_what_is_written_is_read(bundle: str, record: Exit) -> None:
    write_exit(bundle, record, "e1")
    assert read_exit(bundle, "e1") == record


def test_it_is_json_under_the_name_of_the_process(tmp_path: Path) -> None:
    write_exit(str(tmp_path), SEVEN)
    write_exit(str(tmp_path), SEVEN, "e1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e1.exit", "init.exit"]
    assert json.loads((tmp_path / "init.exit").read_text()) == {
        "pid": 4711,
        "exit_status": 7,
        "exited_at": 1_700_000_000_123_456_789,
        "reason": "",
    }


def test_it_is_whole_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    rename, fsync = os.rename, os.fsync

    def sync(fd: int) -> None:
        fsync(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").read_bytes())

    def name(draft: str, path: str) -> None:
        assert synced == [Path(draft).read_bytes()]
        rename(draft, path)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", name)
    write_exit(str(tmp_path), SEVEN)
    assert read_exit(str(tmp_path)) == SEVEN


def test_a_process_that_has_not_ended_has_none(tmp_path: Path) -> None:
    write_exit(str(tmp_path), SEVEN, "e1")
    assert read_exit(str(tmp_path)) is None
    assert read_exit(str(tmp_path), "e2") is None
    assert read_exit(str(tmp_path / "gone")) is None


def test_a_later_one_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    write_exit(str(tmp_path), SEVEN)
    write_exit(str(tmp_path), Exit(1, 2, 3))
    assert read_exit(str(tmp_path)) == Exit(1, 2, 3)
    remove_exit(str(tmp_path))
    remove_exit(str(tmp_path))
    assert read_exit(str(tmp_path)) is None


@given(st.data())
def test_a_record_cut_anywhere_is_none(bundle: str, data: st.DataObject) -> None:
    write_exit(bundle, SEVEN)
    whole = Path(exit_file(bundle)).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    Path(exit_file(bundle)).write_bytes(whole[:cut])
    assert read_exit(bundle) is None


@given(st.binary(max_size=300))
def test_garbage_is_none_and_no_error(bundle: str, garbage: bytes) -> None:
    Path(exit_file(bundle)).write_bytes(garbage)
    assert read_exit(bundle) is None


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "[]",
        "{}",
        "[" * 4000,
        '{"pid": 1, "exit_status": 7, "exited_at": 1}',
        '{"pid": true, "exit_status": 7, "exited_at": 1, "reason": ""}',
        '{"pid": 1, "exit_status": "7", "exited_at": 1, "reason": ""}',
        '{"pid": 1, "exit_status": 7.5, "exited_at": 1, "reason": ""}',
        '{"pid": 1, "exit_status": 7, "exited_at": 0, "reason": ""}',
        '{"pid": 1, "exit_status": -7, "exited_at": 1, "reason": ""}',
        '{"pid": -1, "exit_status": 7, "exited_at": 1, "reason": ""}',
        '{"pid": 1, "exit_status": 4294967296, "exited_at": 1, "reason": ""}',
        '{"pid": 1, "exit_status": 7, "exited_at": 253402300800000000000, "reason": ""}',
        '{"pid": 1, "exit_status": 7, "exited_at": 1, "reason": null}',
    ],
)
def test_json_that_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "init.exit").write_text(text)
    assert read_exit(str(tmp_path)) is None


def test_a_huge_file_is_none_and_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "init.exit").open("wb") as file:
        file.truncate(1 << 40)  # read, it would not fit into any memory
    assert read_exit(str(tmp_path)) is None


def test_what_is_no_plain_file_is_none_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "init.exit")
    (tmp_path / "e1.exit").mkdir()
    (tmp_path / "real").write_text("{}")
    (tmp_path / "e2.exit").symlink_to(tmp_path / "real")
    assert [read_exit(str(tmp_path), id_) for id_ in ("", "e1", "e2")] == [None, None, None]


def test_a_name_cannot_lead_out_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_exit(str(tmp_path), SEVEN, "outside")
    assert read_exit(str(tmp_path), "outside") == SEVEN
    assert read_exit(str(tmp_path / "bundle"), "../outside") is None
    assert read_exit(str(tmp_path / "bundle"), "nul\0") is None


def test_a_record_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    with listening() as said:
        write_exit(str(tmp_path / "gone"), SEVEN)
        assert "cannot write an exit record" in said()
        (tmp_path / "init.exit").mkdir()
        (tmp_path / "init.exit/full").touch()
        write_exit(str(tmp_path), SEVEN)
        assert "cannot write an exit record" in said()
    assert [path.name for path in tmp_path.iterdir()] == ["init.exit"]


@pytest.mark.e2e
def test_the_record_before_stays_when_there_is_no_room_for_another(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk, listening() as said:
        write_exit(str(disk.path), SEVEN)
        disk.fill()
        write_exit(str(disk.path), Exit(1, 2, 3))
        assert "cannot write an exit record" in said()
        assert read_exit(str(disk.path)) == SEVEN
        assert sorted(path.name for path in disk.path.iterdir()) == ["filler", "init.exit"]


@pytest.mark.e2e
def test_on_a_read_only_disk_there_is_none_and_no_error(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk, listening() as said:
        disk.protect()
        write_exit(str(disk.path), SEVEN)
        assert "cannot write an exit record" in said()
        remove_exit(str(disk.path))
        assert read_exit(str(disk.path)) is None
