from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError, NotFoundError
from shimctl.images.accounts import User, find_user, parse_user, read_inside

if TYPE_CHECKING:
    from pathlib import Path

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n# nobody\nwww:x:33:34::/srv:/bin/sh\nbroken\n1000:x:7:8:::\n"
)
GROUP = "root:x:0:\nwww:x:34:\nlogs:x:44:root,www\nadm:x:4:www\nbroken\n"


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (44,))),
        ("root", User(0, 0, (44,))),
        ("0", User(0, 0, (44,))),
        ("www", User(33, 34, (4, 44))),
        ("33", User(33, 34, (4, 44))),
        ("www:logs", User(33, 44)),
        ("www:7", User(33, 7)),
        ("5000", User(5000, 0)),
        ("5000:www", User(5000, 34)),
        ("5000:6000", User(5000, 6000)),
        ("1000", User(7, 8)),  # another user's name
    ],
)
def test_a_user_is_a_name_or_a_number_with_a_group_or_without(text: str, user: User) -> None:
    assert parse_user(text, PASSWD, GROUP) == user


def test_without_the_files_numbers_still_mean_something() -> None:
    assert parse_user("", "", "") == User(0, 0)
    assert parse_user("12:34", "", "") == User(12, 34)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nobody", "has no user nobody in its /etc/passwd"),
        ("www:nobody", "has no group nobody in its /etc/group"),
        ("4294967295", "has no user 4294967295"),
        ("-1", "has no user -1"),
    ],
)
def test_a_name_the_image_does_not_know_is_told(text: str, match: str) -> None:
    with pytest.raises(NotFoundError, match=match):
        parse_user(text, PASSWD, GROUP)


@pytest.mark.parametrize("text", [":", "www:", ":www"])
def test_half_a_user_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a user; use USER"):
        parse_user(text, PASSWD, GROUP)


@given(st.text(), st.text(), st.text())
def test_any_files_give_a_user_or_an_error(text: str, passwd: str, group: str) -> None:
    try:
        found = parse_user(text, passwd, group)
    except (InvalidError, NotFoundError):
        return
    assert 0 <= found.uid < 1 << 31
    assert 0 <= found.gid < 1 << 31


def test_links_in_the_image_do_not_lead_to_the_hosts_files(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (tmp_path / "passwd").write_text("evil:x:1:1:::\n")
    for target in ("../../passwd", str(tmp_path / "passwd"), "../../../../../../etc/hosts"):
        (rootfs / "etc/passwd").unlink(missing_ok=True)
        (rootfs / "etc/passwd").symlink_to(target)
        assert read_inside(rootfs, "etc/passwd") == ""
    (rootfs / "etc").rename(rootfs / "real")
    (rootfs / "etc").symlink_to("/real")
    (rootfs / "real/passwd").unlink()
    (rootfs / "real/passwd").write_text("www:x:33:34:::\n")
    assert find_user(rootfs, "www") == User(33, 34)


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    (tmp_path / "etc/group").mkdir()
    assert read_inside(tmp_path, "etc/passwd") == ""
    assert read_inside(tmp_path, "etc/group") == ""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidError, match="symbolic links"):
        read_inside(tmp_path, "a")
