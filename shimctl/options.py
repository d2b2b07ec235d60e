"""Make the Any messages in requests: OCI objects and the runtime's options.

Source: containerd api/types/runc/options, and pkg/oci for the names of JSON values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage

from shim import jsontext, names
from shim.api.options_pb2 import CheckpointOptions, Options
from shim.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from google.protobuf.message import Message


_Fields = ParamSpec("_Fields")
_Message = TypeVar("_Message")


def runc_options(
    *,
    binary: str = "",
    root: str | Path = "",
    systemd_cgroup: bool = False,
    no_pivot_root: bool = False,
    no_new_keyring: bool = False,
    criu_work_path: str | Path = "",
    io_uid: int = 0,
    io_gid: int = 0,
) -> AnyMessage:
    """Return the options of ``create`` for runc and runtimes with runc's command line.

    ``binary`` is the runtime's executable (default runc).  ``root`` is the runtime's state
    directory (default /run/containerd/runc); the shim appends the namespace to it.
    With ``systemd_cgroup`` systemd makes the cgroup.  ``io_uid`` and ``io_gid`` own the
    pipes of the process.  For an empty value the shim uses its own default.
    """
    return _wrapped(
        make_message(
            Options,
            binary_name=binary,
            root=str(root),
            systemd_cgroup=systemd_cgroup,
            no_pivot_root=no_pivot_root,
            no_new_keyring=no_new_keyring,
            criu_work_path=str(criu_work_path),
            io_uid=io_uid,
            io_gid=io_gid,
        )
    )


def checkpoint_options(
    image: str | Path, *, stop: bool = False, work_path: str | Path = ""
) -> AnyMessage:
    """Return the options of a checkpoint into the directory ``image``."""
    options = make_message(
        CheckpointOptions, exit=stop, image_path=str(image), work_path=str(work_path)
    )
    return _wrapped(options)


def json_value(kind: str, value: Mapping[str, object]) -> AnyMessage:
    """Wrap an object of an OCI config; ``kind`` is its type's name in the specification."""
    return AnyMessage(type_url=names.SPEC + kind, value=jsontext.dumps(dict(value)))


def make_message(
    kind: Callable[_Fields, _Message], *args: _Fields.args, **fields: _Fields.kwargs
) -> _Message:
    """Return a message of ``kind`` with ``fields``.

    :raises InvalidError: a number is out of its field's range, or a text is not UTF-8.
    """
    try:
        return kind(*args, **fields)
    except ValueError as exc:
        raise InvalidError(f"cannot make a {kind.__name__}: {exc}") from None


def _wrapped(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
