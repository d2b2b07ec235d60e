from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.errors import WrongStateError
from shim.linux import libc
from shim.linux.removal import remove_tree
from shimctl.images import Store, release
from shimctl.images.store import Use
from shimctl.standalone import workdir

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
_MS_BIND = 4096

ODD = ["plain", "ü", "a\x0cb", "\u2028", os.fsdecode(b"caf\xe9"), "x y\\040\n#"]


@pytest.fixture(params=ODD, ids=ascii)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with such characters in its name."""
    path = tmp_path / str(request.param)
    path.mkdir()
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host, which is mounted somewhere."""
    path = tmp_path / "victim"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text("precious")
    return path


@pytest.fixture
def bind(victim: Path) -> Iterator[Bind]:
    made = Bind(victim)
    yield made
    for target in reversed(made.targets):
        libc.umount2(target, 2)
    assert (victim / "deep" / "file").read_text() == "precious"


class Bind:
    """Mounts the victim; the file system is the same, so that the device is, too."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim
        self.targets: list[str] = []

    def on(self, target: Path) -> None:
        libc.mount(str(self.victim), str(target), "", _MS_BIND)
        self.targets.append(str(target))


NAME = st.sampled_from(["a", "b", "ü", "\udce9", " "])
TREE = st.recursive(st.none(), lambda below: st.dictionaries(NAME, below, max_size=3))


def _make(path: Path, tree: object) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, below in tree.items():
            _make(path / name, below)
    else:
        path.symlink_to(path.parent)


@pytest.mark.slow
@settings(deadline=None)  # it waits for a disk
@given(tree=st.dictionaries(NAME, TREE))
def test_a_tree_is_removed_whatever_it_looks_like(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    top = tmp_path_factory.mktemp("tree")
    (top / "beside").touch()
    _make(top / "tree", tree)
    remove_tree(top / "tree")
    assert [path.name for path in top.iterdir()] == ["beside"]


def test_what_is_not_there_or_no_directory_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "kept" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").touch()
    for name in ("missing", "missing/below", "file", "file/below", "link"):
        remove_tree(tmp_path / name)
    assert (tmp_path / "kept" / "below").exists()
    with pytest.raises(WrongStateError, match="does not end with a name"):
        remove_tree(f"{tmp_path}/kept/..")


def refill(monkeypatch: pytest.MonkeyPatch, directory: Path, times: int) -> None:
    """Create a file in ``directory`` just before it is removed, so many times."""
    rmdir, left = os.rmdir, [*range(times)]

    def refilling(name: str, *, dir_fd: int) -> None:
        if name == directory.name and left:
            (directory / f"late{left.pop()}").touch()
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", refilling)


def test_files_that_appear_during_the_removal_are_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree" / "below").mkdir(parents=True)
    refill(monkeypatch, tmp_path / "tree" / "below", 3)
    remove_tree(tmp_path / "tree")
    assert not list(tmp_path.iterdir())


def test_a_removal_ends_although_files_appear_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    refill(monkeypatch, work, 1000)
    with pytest.raises(WrongStateError, match=r"cannot remove .*work/late\d+: remove it, or end"):
        workdir.remove(work)


@pytest.mark.slow
def test_a_tree_may_be_deeper_than_files_may_be_open(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    here = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(tmp_path / "deep")
    assert not list(tmp_path.iterdir())


@needs_root
def test_nothing_is_removed_where_something_is_mounted(place: Path, bind: Bind) -> None:
    (place / "c" / "rootfs").mkdir(parents=True)
    (place / "c" / "file").touch()
    bind.on(place / "c" / "rootfs")
    for path in (place, place / "c", place / "c" / "rootfs"):
        with pytest.raises(WrongStateError, match="still mounted; umount it"):
            remove_tree(path)
    assert (place / "c" / "file").exists()


@needs_root
def test_a_containers_directory_is_not_removed_through_a_mount(
    place: Path, bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIMCTL_STATE", str(place))
    work = workdir.make({"root": {}}, "ns", "c")
    (work / "rootfs").mkdir()
    bind.on(work / "rootfs")
    with pytest.raises(WrongStateError, match="still mounted; umount it"):
        workdir.remove(work)
    assert (work / "config.json").exists()


@needs_root
def test_what_a_container_of_an_image_wrote_stays_while_something_is_mounted(
    tmp_path: Path, bind: Bind
) -> None:
    store = Store(tmp_path / "store")
    store.make()
    work = tmp_path / "work"
    work.mkdir()
    place = store.add_use(Use("sha256:a", "sha256:a", str(work)))
    (place / "upper").mkdir()
    bind.on(place / "upper")
    with pytest.raises(WrongStateError, match="still mounted"):
        release(work)
    assert [use.work for use in store.uses()] == [str(work)]


def test_a_directory_that_cannot_be_read_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top" / "a").mkdir(parents=True)
    read = []

    def fail(fd: int) -> NoReturn:
        read.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        remove_tree(tmp_path / "top")
    assert len(read) == 1


# In a process that does not see its mounts in the table.
BLIND = """
import os, sys
from pathlib import Path
from shim.errors import WrongStateError
from shim.linux import libc
from shim.linux.mountinfo import mount_points
from shim.linux.removal import remove_tree
top, victim = map(Path, sys.argv[1:])
(top / "a" / "b").mkdir(parents=True)
(top / "a" / "file").touch()
(top / "over").touch()
libc.mount(str(victim), str(top / "a" / "b"), "", 4096)
libc.mount(str(victim / "deep" / "file"), str(top / "over"), "", 4096)
libc.mount("/dev/null", f"/proc/{os.getpid()}/mountinfo", "", 4096)
assert not mount_points()
try:
    remove_tree(top)
except WrongStateError as exc:
    print(exc)
try:
    remove_tree(top / "a" / "b")
except WrongStateError as exc:
    print(exc)
"""


@needs_root
def test_a_mount_that_the_table_does_not_show_is_not_crossed(tmp_path: Path, victim: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", BLIND]
        + [str(tmp_path / "top"), str(victim)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    first, second = done.stdout.splitlines()
    assert first.startswith((f"{tmp_path}/top/a/b is still", f"{tmp_path}/top/over is still"))
    assert second.startswith(f"{tmp_path}/top/a/b is still mounted")
    assert (victim / "deep" / "file").read_text() == "precious"
    assert not (tmp_path / "top" / "a" / "file").exists()
