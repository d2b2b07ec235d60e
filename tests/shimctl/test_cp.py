"""``shimctl cp``, both ways, with real containers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.errors import ShimError
from shimctl.host.containerroot import open_root
from shimctl.host.copying import copy, sides
from tests.shimctl.place import PATIENCE, Place, eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "a secret of the host\n"
ROUNDS = 60  # copies against a process that swaps a directory


@pytest.fixture(params=["ours", "go"], scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with open_place(request.param) as place:
        yield place


@pytest.fixture(scope="module")
def web(place: Place) -> Path:
    """Run the container ``web``; return its root, as the host sees it."""
    return place.sleeper("web") / "rootfs"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Make a directory with a file, an executable, a link and a directory below it."""
    made = tmp_path / "files"
    (made / "below").mkdir(parents=True)
    (made / "one").write_text("one\n")
    (made / "tool").write_text("#!/bin/sh\n")
    (made / "tool").chmod(0o750)
    (made / "link").symlink_to("one")
    (made / "below/two").write_text("two\n")
    return made


def tree(top: Path) -> dict[str, str]:
    """Return the files below ``top`` with their contents, and the links with their texts."""
    found = {}
    for path in sorted(top.rglob("*")):
        text = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else None
        found[str(path.relative_to(top))] = path.read_text() if text is None else text
    return found


def refused(place: Place, *argv: str | Path, stdin: str = "") -> str:
    """Run a copy that must fail with one line; return it."""
    done = place.shimctl("cp", *argv, stdin=stdin)
    assert done.returncode == 125, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_file_is_copied_both_ways_and_a_copy_into_the_container_prints_its_id(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    assert place.done("cp", files / "one", "web:/tmp/first") == "web\n"
    assert (web / "tmp/first").read_text() == "one\n"
    assert place.done("cp", files / "one", "web:tmp") == "web\n"
    assert (web / "tmp/one").read_text() == "one\n"
    assert place.done("cp", "web:/tmp/first", tmp_path / "back") == ""
    assert place.done("cp", "web:/tmp/first", tmp_path) == ""
    assert (tmp_path / "back").read_text() == (tmp_path / "first").read_text() == "one\n"


def test_a_directory_becomes_the_new_one_or_is_copied_into_the_existing_one(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    place.done("cp", files, "web:/tmp/new")
    place.done("cp", files, "web:/tmp/new")
    assert tree(web / "tmp/new/files") == tree(files)
    out = tmp_path / "out"
    place.done("cp", "web:/tmp/new/files", out)
    assert tree(out) == tree(files)
    place.done("cp", "web:/tmp/new/files/", out)
    assert tree(out / "files") == tree(files)


def test_slash_dot_copies_only_the_content(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    (web / "tmp/content").mkdir()
    place.done("cp", f"{files}/.", "web:/tmp/content")
    assert tree(web / "tmp/content") == tree(files)
    (tmp_path / "out").mkdir()
    place.done("cp", "web:/tmp/content/.", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(files)


def test_a_dash_is_a_tar(place: Place, web: Path, files: Path) -> None:
    place.done("cp", files, "web:/tmp/tarred")
    copied = subprocess.run(
        place.command("cp", "web:/tmp/tarred", "-"),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
        env=place.environ,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(copied)) as archive:
        names = archive.getnames()
    assert sorted(names) == sorted(["tarred", *(f"tarred/{name}" for name in tree(files))])
    (web / "tmp/untarred").mkdir()
    subprocess.run(
        place.command("cp", "-", "web:/tmp/untarred"),
        input=copied,
        timeout=PATIENCE,
        check=True,
        env=place.environ,
    )
    assert tree(web / "tmp/untarred/tarred") == tree(files)


def test_missing_directories_of_a_tar_are_readable_whatever_the_umask_is(
    place: Place, web: Path
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/b/file"), io.BytesIO())
    (web / "tmp/masked").mkdir()
    subprocess.run(
        place.command("cp", "-", "web:/tmp/masked"),
        input=data.getvalue(),
        timeout=PATIENCE,
        check=True,
        env=place.environ,
        umask=0o077,
    )
    for name in ("a", "a/b"):
        assert (web / "tmp/masked" / name).stat().st_mode & 0o7777 == 0o755


def test_a_tar_whose_names_lead_out_of_the_directory_is_refused(place: Place, web: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../tmp/escaped"), io.BytesIO())
    done = subprocess.run(
        place.command("cp", "-", "web:/bin"),
        input=data.getvalue(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env=place.environ,
    )
    assert done.returncode == 125
    assert b"it leads out of the directory" in done.stderr
    assert not (web / "tmp/escaped").exists()
    assert "is not a complete tar" in refused(place, "-", "web:/tmp", stdin="no tar at all")


def test_copies_have_the_mode_and_belong_to_the_caller_or_with_a_to_the_same_ids(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    os.chown(files / "tool", 1234, 2345)
    place.done("cp", files / "tool", "web:/tmp/plain")
    place.done("cp", "-a", files / "tool", "web:/tmp/kept")
    plain, kept = ((web / "tmp" / name).stat() for name in ("plain", "kept"))
    assert (plain.st_uid, plain.st_gid, plain.st_mode & 0o7777) == (0, 0, 0o750)
    assert (kept.st_uid, kept.st_gid, kept.st_mode & 0o7777) == (1234, 2345, 0o750)
    place.done("cp", "web:/tmp/kept", tmp_path / "plain")
    place.done("cp", "-a", "web:/tmp/kept", tmp_path / "kept")
    plain, kept = ((tmp_path / name).stat() for name in ("plain", "kept"))
    assert (plain.st_uid, plain.st_gid) == (os.geteuid(), os.getegid())
    assert (kept.st_uid, kept.st_gid, kept.st_mode & 0o7777) == (1234, 2345, 0o750)
    assert int(kept.st_mtime) == int((files / "tool").stat().st_mtime)


def test_a_link_is_copied_as_a_link_or_with_l_as_its_target(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    place.done("cp", files, "web:/tmp/linked")
    place.done("cp", "web:/tmp/linked/link", tmp_path / "link")
    assert str((tmp_path / "link").readlink()) == "one"
    place.done("cp", "-L", "web:/tmp/linked/link", tmp_path / "target")
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_text() == "one\n"


def test_a_link_of_the_container_is_resolved_inside_its_root(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text(SECRET)
    (web / "tmp/outside").symlink_to(host)
    (web / "tmp/upwards").symlink_to("../../../../../../../.." + str(host))
    for link in ("outside", "upwards"):
        assert "there is no" in refused(place, f"web:/tmp/{link}/secret", tmp_path / "stolen")
        assert "there is no" in refused(place, "-L", f"web:/tmp/{link}", tmp_path / "stolen")
        assert "there is no" in refused(place, files / "one", f"web:/tmp/{link}/secret")
    assert not (tmp_path / "stolen").exists()
    # Where the target exists in the container, it is that one.
    inside = web / str(host).lstrip("/")
    inside.mkdir(parents=True)
    place.done("cp", files / "one", "web:/tmp/outside/secret")
    place.done("cp", files / "one", "web:/tmp/upwards")
    assert tree(inside) == {"secret": "one\n", "one": "one\n"}
    place.done("cp", "web:/tmp/outside/secret", tmp_path / "copied")
    assert (tmp_path / "copied").read_text() == "one\n"
    assert tree(host) == {"secret": SECRET}


@contextmanager
def swapping(directory: Path) -> Iterator[None]:
    """Exchange the names ``d`` and ``link`` in ``directory`` without a pause, in the block."""
    script = (
        "import ctypes, sys\n"
        "renameat2 = ctypes.CDLL(None).renameat2\n"
        "exchange = (-100, b'd', -100, b'link', 2)\n"  # AT_FDCWD, RENAME_EXCHANGE
        "assert renameat2(*exchange) == 0\n"
        "print(flush=True)\n"
        "while True: renameat2(*exchange)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"\n"
            yield
        finally:
            process.kill()


def test_a_process_that_swaps_a_directory_for_a_link_reaches_no_file_of_the_host(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    host, race = tmp_path / "host", web / "tmp/race"
    for directory in (host, race / "d"):
        directory.mkdir(parents=True)
    (host / "secret").write_text(SECRET)
    (race / "d/secret").write_text("inside\n")
    (race / "link").symlink_to(host)
    pid = place.json("state", "web")["pid"]
    copied = written = 0
    with swapping(race), open_root("web", pid, "") as root:
        here, there = sides(root, archive=False)
        for number in range(ROUNDS):
            out = tmp_path / f"out{number}"
            out.mkdir()
            with suppress(ShimError, OSError):  # the directory is not always there
                copy(there, "/tmp/race/d/secret", here, str(out / "file"))
                copied += 1
            with suppress(ShimError, OSError):
                copy(there, "/tmp/race/d", here, str(out / "directory"), follow=True)
            with suppress(ShimError, OSError):
                copy(there, "/tmp/race", here, str(out / "all"))
            with suppress(ShimError, OSError):
                copy(here, str(files / "one"), there, "/tmp/race/d/secret")
                written += 1
            with suppress(ShimError, OSError):
                copy(here, str(files), there, "/tmp/race/d/")
            for path in out.rglob("*"):
                assert path.is_symlink() or path.is_dir() or path.read_text() != SECRET, path
            assert tree(host) == {"secret": SECRET}
    assert copied
    assert written


def test_a_paused_container_is_copied_from_and_to(
    place: Place, web: Path, files: Path, tmp_path: Path
) -> None:
    place.done("pause", "web")
    try:
        place.done("cp", files, "web:/tmp/paused")
        place.done("cp", "web:/tmp/paused", tmp_path / "out")
    finally:
        place.done("resume", "web")
    assert tree(tmp_path / "out") == tree(web / "tmp/paused") == tree(files)


def test_an_exited_container_is_copied_from_while_its_rootfs_is_there(
    place: Place, tmp_path: Path
) -> None:
    bundle = place.bundle("sh", "-c", "echo result > /tmp/result")
    place.made("run", "done", bundle)
    place.done("wait", "done")
    place.done("cp", "done:/tmp/result", tmp_path / "result")
    assert (tmp_path / "result").read_text() == "result\n"
    (bundle / "rootfs").rename(bundle / "away")
    assert "done has no running init process" in refused(place, "done:/tmp/result", tmp_path)
    (bundle / "rootfs").mkdir()
    assert "is not mounted; start it" in refused(place, "done:/tmp/result", tmp_path)
    place.done("delete", "done")


@contextmanager
def orphaned(place: Place, id_: str) -> Iterator[Path]:
    """Run a container with a separate file system at /own, and kill its shim.

    Give its working directory.
    """
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/own", "type": "tmpfs", "source": "tmpfs"},
    ]
    bundle = place.bundle("sh", "-c", "echo inside > /own/file; exec sleep 1000", mounts=mounts)
    place.made("run", id_, bundle)
    seen = place.json("inspect", id_)
    eventually(Path(f"/proc/{seen['state']['pid']}/root/own/file").exists)
    os.kill(seen["shim"]["pid"], signal.SIGKILL)
    eventually(
        lambda: (
            place.json("ps", "-a", "-n", place.namespace, "--filter", f"id={id_}")[0]["health"]
            == "dead"
        )
    )
    try:
        yield Path(seen["bundle"])
    finally:
        place.done("rm", "-f", id_)


def test_a_container_whose_shim_is_dead_is_copied_from_and_to(
    place: Place, files: Path, tmp_path: Path
) -> None:
    with orphaned(place, "orphan"):
        place.done("cp", "orphan:/own/file", tmp_path / "file")
        assert (tmp_path / "file").read_text() == "inside\n"
        assert place.done("cp", files / "one", "orphan:/own") == "orphan\n"
        place.done("cp", "orphan:/own/one", tmp_path / "back")
        assert (tmp_path / "back").read_text() == "one\n"


def test_another_process_with_the_pid_of_the_init_process_is_not_copied_from(
    place: Place, tmp_path: Path
) -> None:
    with orphaned(place, "stolen") as work:
        pid = int((work / "init.pid").read_text())
        state = Path("/run/containerd/runc", place.namespace, "stolen/state.json")
        kept = state.read_text()
        told = json.loads(kept)
        assert told["init_process_pid"] == pid
        # As if the kernel had given the pid to a process that started later.
        state.write_text(json.dumps(told | {"init_process_start": told["init_process_start"] - 1}))
        try:
            line = refused(place, "stolen:/own/file", tmp_path / "file")
            assert f"process {pid} is not the init process of stolen" in line
            # Without the file of the runtime, the cgroup decides.
            state.rename(state.with_suffix(".away"))
            place.done("cp", "stolen:/own/file", tmp_path / "file")
            (work / "init.pid").write_text(str(os.getpid()))
            line = refused(place, "stolen:/own/file", tmp_path / "other")
            assert f"process {os.getpid()} is not the init process of stolen" in line
            (work / "init.pid").write_text("no number")
            line = refused(place, "stolen:/own/file", tmp_path / "other")
            assert "no init process of stolen was found" in line
        finally:
            (work / "init.pid").write_text(str(pid))
            state.with_suffix(".away").unlink(missing_ok=True)
            state.write_text(kept)


def test_a_wrong_copy_is_refused_in_one_line(place: Place, web: Path, files: Path) -> None:
    assert "one of the two must be" in refused(place, files, files)
    assert "only one of the two may be" in refused(place, "web:/tmp", "web:/tmp")
    assert "the path is empty" in refused(place, files, "web:")
    assert "no container 'nobody'" in refused(place, files, "nobody:/tmp")
    assert "there is no /nothing" in refused(place, "web:/nothing", files)
    assert "there is no directory /no/where" in refused(place, files / "one", "web:/no/where/one")
    assert "is a file" in refused(place, files, "web:/bin/busybox")
    assert "Not a directory" in refused(place, f"{files}/one/", "web:/tmp")
    assert "is not a directory; leave out" in refused(place, "web:/bin/busybox/", files)
    assert not (web / "no").exists()
