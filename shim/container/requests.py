"""What the messages of a manager mean, in our own terms.  No work is done here."""

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
    """Return the object in ``message``, whose value is JSON whatever its type says.

    CleanupRecords that are null are left out, on every level, as Go's shim leaves them
    out by decoding and encoding: runc 1.1 panics on a limit that is null.

    :raises InvalidError: it is of another type, or not an object.
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
    """Return what an exec runs; ``terminal`` is the request's, whatever the spec says.

    :raises InvalidError: the spec is not the JSON of a Process.
    """
    # As Go's decoder, a runtime takes Terminal for terminal.
    spec = {
        name: value
        for name, value in json_of(request.spec, "Process").items()
        if name.lower() != "terminal"
    }
    return spec | {"terminal": request.terminal}


def checkpoint_of(request: task_pb2.CheckpointTaskRequest) -> Checkpoint:
    """Return what to dump; ``work_path`` is empty unless the request names one.

    :raises InvalidError: the options are not well formed, or there is no path.
    """
    options = options_pb2.CheckpointOptions()
    if names.type_name(request.options.type_url) == options.DESCRIPTOR.full_name:
        try:
            options.ParseFromString(request.options.value)
        except DecodeError:
            raise InvalidError("the checkpoint's options are not well formed") from None
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
