"""The output of ``-info`` and ``features``: the shim's version and the runtime's features.

Source: containerd core/runtime/v2/task_manager.go, CRI-O pkg/config/config.go,
and the OCI runtime-spec's features.md.
"""

from __future__ import annotations

import signal

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from shim import jsontext, log, names
from shim.api.introspection_pb2 import RuntimeInfo, RuntimeVersion
from shim.container.options import Options
from shim.errors import ShimError, TimedOutError
from shim.reaper import open_reaper
from shim.runc.command import Runtime
from shim.runc.driver import Runc, RuntimeMissingError
from shim.version import VERSION

_LIMIT = 5.0  # seconds for the runtime's ``features`` command


def info(stdin: bytes) -> bytes:
    """Return a RuntimeInfo for the options in ``stdin``, an Any or nothing.

    If the runtime has no command ``features``, the reply has none.

    :raises RuntimeMissingError: there is no such runtime.
    """
    try:
        options = AnyMessage.FromString(stdin)
    except DecodeError:
        options = AnyMessage()
    reply = RuntimeInfo(name=names.RUNTIME, version=RuntimeVersion(version=VERSION))
    if options.type_url:
        reply.options.CopyFrom(options)
    features = trio.run(_features, Options.decode(options).binary_name or "runc")
    if features:
        reply.features.type_url = names.FEATURES
        reply.features.value = features
    return reply.SerializeToString()


def features() -> int:
    """Let the runtime print its features, as CRI-O expects; return its exit status.

    :raises NotFoundError: there is no such runtime.
    :raises TimedOutError: it did not end within the limit.
    """
    return trio.run(_print_features, Options().runtime("").binary)


async def _print_features(binary: str) -> int:
    async with open_reaper() as reaper:
        child = reaper.spawn([binary, "features"], fds={1: 1, 2: 2})
        with trio.move_on_after(_LIMIT):
            return (await child.wait()).exit_status
        child.signal(signal.SIGKILL)
        raise TimedOutError(
            f"cannot print the features of {binary}: it did not exit within {_LIMIT:g} s"
        )


async def _features(binary: str) -> bytes:
    async with open_reaper() as reaper:
        try:
            text = await Runc(Runtime(binary), reaper, _LIMIT).run("features")
            jsontext.loads(text)
        except RuntimeMissingError:
            raise
        except (ShimError, ValueError) as exc:
            log.debug("cannot read the runtime's features", runtime=binary, error=exc)
            return b""
        return text.encode()
