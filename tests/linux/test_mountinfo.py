from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.linux.mountinfo import mount_points, mounts_below, parse

NAMES = st.binary(min_size=1).filter(lambda name: b"\0" not in name)


def _escaped(name: bytes) -> bytes:
    """Write a name as linux fs/seq_file.c mangle_path() does."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), max_size=5))
def test_every_name_is_read_as_it_is(names: list[tuple[bytes, bytes, bytes]]) -> None:
    lines = [
        b"31 23 0:28 /%s /%s rw,relatime shared:1 - tmpfs %s rw,mode=755\n"
        % (_escaped(root), _escaped(point), _escaped(source))
        for root, point, source in names
    ]
    found = parse(b"".join(lines))
    assert [os.fsencode(mount.root)[1:] for mount in found] == [root for root, _, _ in names]
    assert [os.fsencode(mount.point)[1:] for mount in found] == [point for _, point, _ in names]
    assert all(mount.options == {"rw", "mode=755"} for mount in found)


@given(st.binary())
def test_a_malformed_table_is_no_error(data: bytes) -> None:
    line = b"31 23 0:28 / /mnt rw - tmpfs tmpfs rw\n"
    assert parse(data.replace(b"\n", b"") + b"\n" + line)[-1].point == "/mnt"


def test_a_mount_without_a_source_is_read() -> None:
    assert parse(b"31 23 0:28 / /mnt rw - tmpfs  rw\n")[0].options == {"rw"}


def test_mounts_below_are_those_in_the_directory_and_on_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    inside = [f"{tmp_path}/real/x", f"{tmp_path}/real/x/y"]
    points = ["/", str(tmp_path), *inside, f"{tmp_path}/real/x2"]
    assert mounts_below(f"{tmp_path}/link/x", points) == inside
    assert mounts_below(f"{tmp_path}/link/x/", points) == inside
    assert mounts_below("/", points) == points


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_kernel_names_mounts_as_we_read_them(tmp_path: Path) -> None:
    names = [b"\xc3\xbc", b"a\x0cb", b"\xe2\x80\xa8", b"caf\xe9", b"x y\\040\n#", b"z (deleted)"]
    code = (
        "import os, sys; from shim.linux import libc; from shim.linux.mountinfo import *\n"
        "top = sys.argv[1]\n"
        "for name in os.listdir(top): libc.mount('none', f'{top}/{name}', 'tmpfs')\n"
        "assert sorted(mounts_below(top)) == sorted(f'{top}/{n}' for n in os.listdir(top))\n"
        "assert len(mounts_below(top)) == int(sys.argv[2])\n"
    )
    for name in names:
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)  # noqa: PTH102 - bytes
    subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", code]
        + [str(tmp_path), str(len(names))],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert not [point for point in mount_points() if point.startswith(str(tmp_path))]
