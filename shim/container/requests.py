"""Converts the messages of a manager into the shim's own values.  This module is pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from shim import jsontext, names
from shim.api import options_pb2
from shim.errors import InvalidError
from shim.linux.mounts import Mount
from shim.runc.command import Checkpoint
from shim.stdio.streams import StdioSpec
from shim.ttrpc.strings import check_strings

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api import mount_pb2, task_pb2


def mount_of(message: mount_pb2.Mount) -> Mount:
    return Mount(message.type, message.source, message.target, tuple(message.options))


def stdio_of(request: task_pb2.CreateTaskRequest | task_pb2.ExecProcessRequest) -> StdioSpec:
    return StdioSpec(request.stdin, request.stdout, request.stderr, request.terminal)


def json_of(message: AnyMessage, kind: str) -> dict[str, object]:
    """Return the JSON object in ``message``, whose type must be ``kind``.

    Fields that are null are dropped on every level.  Go's shim drops them by decoding and
    encoding, and runc 1.1 panics on a limit that is null.

    :raises InvalidError: the message is of another type, or its value is not a JSON object.
    """
    if message.type_url.rpartition("/")[2] != kind:
        raise InvalidError(f"expected the JSON of a {kind}, got {message.type_url or 'nothing'!r}")
    try:
        value = jsontext.loads(message.value, nulls=False)
    except ValueError as exc:
        raise InvalidError(f"the {kind} is not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise InvalidError(f"the {kind} is not a JSON object")
    return value


def process_of(request: task_pb2.ExecProcessRequest) -> dict[str, object]:
    """Return the spec of an exec, with ``terminal`` from the request.

    :raises InvalidError: the spec is not the JSON of a Process.
    """
    # Runtimes in Go decode names without regard to case: Terminal is terminal.
    spec = {
        name: value
        for name, value in json_of(request.spec, "Process").items()
        if name.lower() != "terminal"
    }
    return spec | {"terminal": request.terminal}


def checkpoint_of(request: task_pb2.CheckpointTaskRequest) -> Checkpoint:
    """Return the settings of a checkpoint; ``work_path`` is empty if the request has none.

    :raises InvalidError: the options are not well formed, or there is no path.
    """
    options = options_pb2.CheckpointOptions()
    if names.type_name(request.options.type_url) == options.DESCRIPTOR.full_name:
        try:
            options.ParseFromString(request.options.value)
        except DecodeError:
            raise InvalidError("the checkpoint options are not well formed") from None
        check_strings(options)
    image = request.path or options.image_path
    if not image:
        raise InvalidError("checkpoint needs a path to write to")
    return Checkpoint(
        image_path=image,
        work_path=options.work_path,
        parent_path=options.parent_path,
        exit=options.exit,
        open_tcp=options.open_tcp,
        external_unix_sockets=options.external_unix_sockets,
        terminal=options.terminal,
        file_locks=options.file_locks,
        empty_namespaces=tuple(options.empty_namespaces),
        cgroups_mode=options.cgroups_mode,
    )
