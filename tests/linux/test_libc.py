"""System calls take whole names, or none."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from shim.errors import InvalidError
from shim.linux import libc, mounts, sockets
from shim.linux.posixspawn import spawn
from shimctl import launch
from shimctl.images.config import read_image_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    "call",
    [
        lambda: libc.mount("a\0b", "/", "tmpfs"),
        lambda: libc.mount("a", "/\0b", "tmpfs"),
        lambda: libc.mount("a", "/", "tmpfs\0b"),
        lambda: libc.mount("a", "/", "tmpfs", 0, "size=1\0b"),
        lambda: libc.umount2("/\0b"),
        lambda: libc.inotify_add_watch(-1, "/\0b", 1),
        lambda: spawn(["true", "\0b"], {}, []),
    ],
)
def test_a_name_with_a_nul_is_refused_and_not_cut_off(call: Callable[[], Any]) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        call()
    assert caught.value.errno == errno.EINVAL
    assert "\0" in caught.value.filename


def test_a_socket_address_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="NUL"):
        sockets.listen(f"unix://{tmp_path}/s\0x")
    assert not os.listdir(tmp_path)
    with pytest.raises(InvalidError, match="NUL"):
        mounts.resolve(str(tmp_path), "a\0b")


@pytest.mark.parametrize("name", ["bundle", "container", "namespace", "runtime", "events"])
async def test_a_launch_with_a_nul_is_refused(tmp_path: Path, name: str) -> None:
    arguments: dict[str, Any] = {"bundle": tmp_path, "container": "c1"}
    with pytest.raises(InvalidError, match="NUL"):
        await launch(**arguments | {name: f"{tmp_path}\0x"})


@pytest.mark.parametrize(
    "found",
    [{"User": "a\0"}, {"WorkingDir": "/\0"}, {"Env": ["A=\0"]}, {"Volumes": {"/a\0": {}}}],
)
def test_an_image_with_a_nul_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="NUL"):
        read_image_config({"config": found}, "the image")
