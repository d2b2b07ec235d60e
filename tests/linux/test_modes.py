"""The modes of created files, and directories that another user could replace."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.errors import InvalidError
from shim.linux.modes import (
    check_trusted,
    make_directories,
    make_directory,
    make_fifo,
    make_private_directory,
    make_trusted,
    write_file,
)
from shim.linux.sockets import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
UMASKS = [0o000, 0o022, 0o077, 0o777]


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("value", UMASKS, ids=oct)
def test_what_is_made_has_its_mode_whatever_the_umask(tmp_path: Path, value: int) -> None:
    with umask(value):
        make_directory(tmp_path / "d", 0o711)
        make_directories(tmp_path / "a/b/c", 0o750, parents=0o755)
        make_fifo(tmp_path / "fifo", 0o700)
        write_file(tmp_path / "file", "text", 0o644)
        make_trusted(f"{tmp_path}/x/y/z")
    assert mode_of(tmp_path / "d") == 0o711
    assert [mode_of(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o750]
    assert mode_of(tmp_path / "fifo") == 0o700
    assert mode_of(tmp_path / "file") == 0o644
    assert [mode_of(tmp_path / name) for name in ("x", "x/y", "x/y/z")] == [0o711, 0o711, 0o700]


@pytest.mark.parametrize("value", UMASKS, ids=oct)
def test_a_socket_its_directory_and_their_parents_have_their_modes_whatever_the_umask(
    tmp_path: Path, value: int
) -> None:
    with umask(value), listen(f"unix://{tmp_path}/run/s/socket"):
        found = [mode_of(tmp_path / name) for name in ("run", "run/s", "run/s/socket")]
    assert found == [0o711, 0o700, 0o600]


def test_a_file_that_exists_gets_the_new_content_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a longer text")
    file.chmod(0o666)
    write_file(file, b"short")
    assert (file.read_text(), mode_of(file)) == ("short", 0o600)


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(0o750)
    make_directories(tmp_path / "a/b")
    make_trusted(f"{tmp_path}/a/b")
    assert mode_of(tmp_path / "a") == 0o750
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "a")


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "a", exist_ok=True)
    with pytest.raises(InvalidError, match="not a directory"):
        make_trusted(f"{tmp_path}/a/b")
    with pytest.raises(NotADirectoryError, match=f"Not a directory: '{tmp_path}/a/b/c'"):
        make_directories(tmp_path / "a/b/c")


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o703])
def test_a_parent_that_every_user_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    parent = tmp_path / "parent"
    (parent / "s").mkdir(parents=True)
    parent.chmod(mode)
    for path in (parent / "s", parent / "new"):
        with pytest.raises(InvalidError, match=f"may write to {parent} .*chmod go-w {parent}"):
            make_trusted(str(path))
    assert not (parent / "new").exists()
    with pytest.raises(InvalidError):
        check_trusted(str(parent / "s"))


def test_a_parent_that_a_group_may_write_to_is_refused_unless_it_is_the_owners_own(
    tmp_path: Path,
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o770)
    make_trusted(f"{parent}/s")
    os.chown(parent, 0, 100)
    with pytest.raises(InvalidError, match="other users may write"):
        make_trusted(f"{parent}/s")


def test_a_parent_of_another_user_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "s").mkdir(parents=True)
    os.chown(parent, NOBODY, NOBODY)
    with pytest.raises(InvalidError, match=f"{parent} belongs to user {NOBODY}"):
        make_trusted(f"{parent}/s")


def test_a_sticky_parent_is_allowed(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o1777)
    make_trusted(f"{parent}/a/b")
    assert mode_of(parent / "a") == 0o711


def test_what_another_user_put_into_a_sticky_parent_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "ours").mkdir(parents=True)
    parent.chmod(0o1777)
    (parent / "link").symlink_to("ours")
    make_trusted(f"{parent}/link/s")
    os.lchown(parent / "link", NOBODY, NOBODY)
    with pytest.raises(InvalidError, match=f"{parent}/link belongs to user"):
        make_trusted(f"{parent}/link/s")


def test_the_parents_behind_a_link_are_checked(tmp_path: Path) -> None:
    (tmp_path / "open/s").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open/s")
    (tmp_path / "up").symlink_to("open/s/../s")
    for name in ("link", "up"):
        with pytest.raises(InvalidError, match="other users may write"):
            make_trusted(f"{tmp_path}/{name}/x")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidError, match="more than 40 links"):
        make_trusted(f"{tmp_path}/a/s")


def test_a_relative_path_is_checked_from_the_root_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "open/here")
    make_trusted("s/t")
    assert mode_of(tmp_path / "open/here/s/t") == 0o700
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(InvalidError, match="other users may write"):
        make_trusted("s/t")


def test_a_runtime_directory_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = Path(make_private_directory("test-"))
    made.rmdir()
    assert made.parent == Path("/run")


# Root of a user namespace of user 1000, entered once everything is loaded: 1000 may
# have no access to the interpreter.
_ROOTLESS = """
import ctypes, os, sys
from shim.linux.modes import make_trusted
os.setgroups([]); os.setgid(1000); os.setuid(1000)
libc = ctypes.CDLL(None)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else /proc/self belongs to root
assert libc.unshare(0x10000000) == 0  # CLONE_NEWUSER
for name, text in ("setgroups", "deny"), ("uid_map", "0 1000 1"), ("gid_map", "0 1000 1"):
    with open("/proc/self/" + name, "w") as file:
        file.write(text)
assert (os.geteuid(), os.stat("/").st_uid) == (0, 65534)
make_trusted(sys.argv[1])
"""


def test_the_hosts_root_is_trusted_in_a_user_namespace(tmp_path: Path) -> None:
    """As under rootlesskit, where / belongs to a user that the namespace does not have."""
    home = tmp_path / "home"
    home.mkdir()
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o711)
    os.chown(home, 1000, 1000)
    done = subprocess.run(
        [sys.executable, "-c", _ROOTLESS, f"{home}/run/s"],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode()
    assert mode_of(home / "run/s") == 0o700
