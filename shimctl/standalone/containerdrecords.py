"""Read a container's record in containerd, from its own service, without changing anything.

The record has the labels of ``ctr`` and nerdctl, which are not in the bundle, and what
the CRI plugin keeps of a container.  grpclib needs asyncio, so a call has a thread with an
event loop.

Source: containerd api/services/containers/v1/containers.proto; pkg/namespaces for the
header; client/container_opts.go for the label of the stop signal; internal/cri/store/container
(metadata.go) for the extension.
"""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shim.api.containers_pb2 import GetContainerRequest, GetContainerResponse
from shimctl import directories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.containers_pb2 import Container

_METHOD = "/containerd.services.containers.v1.Containers/Get"
_TIMEOUT = 2  # s for the answer of containerd
_STOP_SIGNAL = "io.containerd.image.config.stop-signal"
_OF_CRI = "io.cri-containerd.container.metadata"


async def read_record(bundle: Path, namespace: str, container: str) -> Container | None:
    """Return the record of the container in ``bundle``.

    Returns None if the bundle is not in a state directory of containerd, or if the
    containerd of that directory does not answer within 2 s or has no such container.
    """
    for path in _sockets(bundle):
        if path.is_socket():
            get = partial(_get, path, namespace, container)
            record = await trio.to_thread.run_sync(get, abandon_on_cancel=True)
            if record is not None:
                return record
    return None


def stop_signal_in(record: Container) -> str:
    """Return the stop signal of the image in a record, as text; empty if it has none."""
    if found := record.labels.get(_STOP_SIGNAL):
        return found
    try:
        kept = json.loads(record.extensions[_OF_CRI].value)["Metadata"]["StopSignal"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return kept if isinstance(kept, str) else ""


def _sockets(bundle: Path) -> Iterator[Path]:
    """Yield where the containerd may listen that made ``bundle``."""
    root = bundle.parent.parent
    if root.name != directories.BUNDLES:
        return
    if address := os.environ.get("CONTAINERD_ADDRESS"):
        yield Path(address)
    yield root.parent / "containerd.sock"
    yield root.parent.parent / "containerd.sock"


def _get(path: Path, namespace: str, container: str) -> Container | None:
    from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

    try:
        return asyncio.run(_call(path, namespace, container))
    except (GRPCError, ProtocolError, StreamTerminatedError, OSError):
        return None  # TimeoutError is an OSError


async def _call(path: Path, namespace: str, container: str) -> Container:
    from grpclib.client import Channel, UnaryUnaryMethod

    async with asyncio.timeout(_TIMEOUT), Channel(path=str(path)) as channel:
        method = UnaryUnaryMethod(channel, _METHOD, GetContainerRequest, GetContainerResponse)
        reply = await method(
            GetContainerRequest(id=container), metadata={"containerd-namespace": namespace}
        )
    return reply.container
