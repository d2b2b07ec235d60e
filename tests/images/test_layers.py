from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from shim.errors import InvalidError, UnsupportedError
from shimctl.images.layers import Names, check_layer
from tests.images.layouts import Layer

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "sha256:feed"


@pytest.mark.parametrize(
    "name", ["../etc/x", "../../etc/x", "a/../../etc/x", "a/..", "..", "/../etc/x", "./../x"]
)
def test_a_name_that_climbs_out_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match=r"sha256:feed is refused for its entry .* out of the"):
        Names(DIGEST).check(name)


@pytest.mark.parametrize("target", ["/etc", "/", "../../etc", "../..", "x/../../.."])
def test_writing_through_a_link_that_leads_out_is_refused(target: str) -> None:
    names = Names(DIGEST)
    names.check("a/link", symlink=target)
    with pytest.raises(InvalidError, match="its path contains the link a/link to"):
        names.check("a/link/passwd")


def test_a_hard_link_does_not_reach_out_either() -> None:
    with pytest.raises(InvalidError, match="leads out of the image"):
        Names(DIGEST).check("a", hardlink="../../etc/shadow")
    names = Names(DIGEST)
    names.check("link", symlink="/etc")
    with pytest.raises(InvalidError, match="contains the link"):
        names.check("a", hardlink="link/shadow")


@pytest.mark.parametrize("name", [".wh...", "a/.wh...", ".wh..", ".wh."])
def test_a_whiteout_hides_nothing_above_itself(name: str) -> None:
    with pytest.raises(InvalidError, match="it removes a directory that contains it"):
        Names(DIGEST).check(name)


def test_what_images_really_hold_is_taken() -> None:
    names = Names(DIGEST)
    names.check("./")
    names.check("/app/from/a/builder")  # the image's own root
    names.check("var/run", symlink="/run")
    names.check("lib", symlink="usr/lib")
    names.check("lib/x.so")
    names.check("usr/bin/vi", symlink="../../etc/alternatives/vi")
    names.check("a/.wh.gone")
    names.check("a/.wh..wh..opq")
    names.check("...")
    names.check("b", hardlink="a/file")


def test_a_link_that_was_replaced_is_no_way_out() -> None:
    names = Names(DIGEST)
    names.check("a", symlink="/etc")
    names.check("a")
    names.check("a/file")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_layer_is_read_to_its_end(tmp_path: Path, zipped: bool) -> None:
    data = Layer().file("a", b"x" * 100_000).file("b").bytes()
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(data) if zipped else data)
    told: list[int] = []
    check_layer(path, DIGEST, told.append)
    assert len(told) == 2
    assert told == sorted(told)
    assert 0 < told[-1] <= path.stat().st_size


def test_the_last_of_several_zipped_parts_is_looked_at_too(tmp_path: Path) -> None:
    data = Layer().file("a", b"x" * 2000).file("../out").bytes()
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(data[:1024]) + gzip.compress(data[1024:]))
    with pytest.raises(InvalidError, match=r"'\.\./out'"):
        check_layer(path, DIGEST, lambda _: None)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    for data in (b"no tar" * 1000, gzip.compress(b"no tar" * 1000), gzip.compress(b"x")[:-4]):
        path.write_bytes(data)
        with pytest.raises(InvalidError, match="layer sha256:feed is not a tar"):
            check_layer(path, DIGEST, lambda _: None)


def test_zstd_is_said_to_be_beyond_us(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(UnsupportedError, match="zstd"):
        check_layer(path, DIGEST, lambda _: None)
