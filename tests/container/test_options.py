"""The runtime's options, in every dress they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import options_pb2, runtimeoptions_pb2
from shim.container.options import Options
from shim.errors import InvalidError

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message


def packed(message: Message, prefix: str = "") -> AnyMessage:
    return AnyMessage(
        type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString()
    )


def test_no_options_are_the_defaults() -> None:
    assert Options.decode(None) == Options.decode(AnyMessage()) == Options()


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "a/b/"])
def test_runc_options_come_under_any_prefix(prefix: str) -> None:
    message = options_pb2.Options(binary_name="crun", systemd_cgroup=True, io_uid=7, root="/r")
    decoded = Options.decode(packed(message, prefix))
    assert decoded == Options(binary_name="crun", systemd_cgroup=True, io_uid=7, root="/r")


def test_generic_options_are_toml_with_gos_names() -> None:
    toml = b'BinaryName = "/usr/bin/runsc"\nSystemdCgroup = true\nIoUid = 5\nTypeUrl = "x"\n'
    decoded = Options.decode(packed(runtimeoptions_pb2.Options(config_body=toml)))
    assert decoded == Options(binary_name="/usr/bin/runsc", systemd_cgroup=True, io_uid=5)


def test_generic_options_may_name_a_file(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text('Root = "/somewhere"')
    message = runtimeoptions_pb2.Options(config_path=str(path))
    assert Options.decode(packed(message)) == Options(root="/somewhere")


@pytest.mark.parametrize("toml", [b"BinaryName =", b"BinaryName = 3", b"SystemdCgroup = 1"])
def test_toml_that_is_wrong_is_refused(toml: bytes) -> None:
    with pytest.raises(InvalidError, match="runtime option"):
        Options.decode(packed(runtimeoptions_pb2.Options(config_body=toml)))


def test_a_type_nobody_knows_is_ignored() -> None:
    assert Options.decode(AnyMessage(type_url="some.Options", value=b"\xff")) == Options()


def test_bytes_that_are_no_options_are_refused() -> None:
    with pytest.raises(InvalidError, match=r"containerd\.runc\.v1\.Options"):
        Options.decode(AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff\xff"))


def test_options_on_disk_are_read_back(tmp_path: Path) -> None:
    options = Options(binary_name="crun", root="/r", io_gid=3, no_pivot_root=True)
    options.write(tmp_path / "options.json")
    assert Options.read(tmp_path / "options.json") == options


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"root": 3}'])
def test_options_that_cannot_be_read_back_are_the_defaults(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "options.json"
    if text is not None:
        path.write_text(text)
    assert Options.read(path) == Options()


def test_options_of_gos_shim_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text(
        '{"binary_name":"runc","root":"/r","systemd_cgroup":true,"task_api_version":2}'
    )
    assert Options.read(path) == Options(binary_name="runc", root="/r", systemd_cgroup=True)


def test_the_runtimes_state_is_apart_for_each_namespace() -> None:
    assert Options().runtime("k8s.io").root == "/run/containerd/runc/k8s.io"
    assert Options(root="/var/run/docker/runtime-runc").runtime("moby").root == (
        "/var/run/docker/runtime-runc/moby"
    )
