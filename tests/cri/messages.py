"""The messages and methods of ``cri.proto``, compiled when this module is imported.

    from tests.cri import messages as cri
    cri.ExecSyncRequest(container_id=id_, cmd=["true"])

Nothing generated is kept: no program of ours speaks this protocol, only tests do.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "runtime.v1"


@dataclass(frozen=True, slots=True)
class Method:
    path: str
    request: Any
    reply: Any


def _compile() -> descriptor_pool.DescriptorPool:
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{here}"]
        subprocess.run([*protoc, f"--descriptor_set_out={out}", "cri.proto"], check=True, cwd=here)
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    # A separate pool: the default one has the messages of the product.
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def _methods(pool: descriptor_pool.DescriptorPool) -> dict[str, Method]:
    services = [
        pool.FindServiceByName(f"{_PACKAGE}.{name}") for name in ("RuntimeService", "ImageService")
    ]
    return {
        method.name: Method(
            f"/{service.full_name}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for service in services
        for method in service.methods
    }


_POOL = _compile()
METHODS = _methods(_POOL)


def __getattr__(name: str) -> Any:
    try:
        descriptor = _POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    except KeyError:
        raise AttributeError(name) from None
    return message_factory.GetMessageClass(descriptor)


def enum(name: str, number: int) -> str:
    """Name a value, such as CONTAINER_EXITED."""
    return str(_POOL.FindEnumTypeByName(f"{_PACKAGE}.{name}").values_by_number[number].name)


def value(name: str) -> int:
    """Return the number of a value of NamespaceMode."""
    modes = _POOL.FindEnumTypeByName(f"{_PACKAGE}.NamespaceMode")
    return int(modes.values_by_name[name].number)
