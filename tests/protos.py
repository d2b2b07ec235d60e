"""Messages and methods of a .proto file of the tests, compiled when they are first used.

Nothing generated is kept: no program of ours speaks these protocols, only tests do.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@dataclass(frozen=True, slots=True)
class Method:
    path: str
    request: Any
    reply: Any


class Protocol:
    """The file ``path``, which has one package."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @functools.cached_property
    def _file(self) -> Any:
        # A separate pool: the default one has the messages of the product.
        pool = descriptor_pool.DescriptorPool()
        here, name = self._path.parent, self._path.name
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "set"
            protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{here}"]
            subprocess.run([*protoc, f"--descriptor_set_out={out}", name], check=True, cwd=here)
            files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
        for file in files.file:
            pool.Add(file)
        return pool.FindFileByName(name)

    def message(self, name: str) -> Any:
        """Return the class of a message."""
        return message_factory.GetMessageClass(self._file.message_types_by_name[name])

    @functools.cached_property
    def methods(self) -> dict[str, Method]:
        """The methods of all services by their names."""
        return {
            method.name: Method(
                f"/{service.full_name}/{method.name}",
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
            )
            for service in self._file.services_by_name.values()
            for method in service.methods
        }

    def value_name(self, enum: str, number: int) -> str:
        """Name a value of an enum, such as CONTAINER_EXITED."""
        return str(self._file.enum_types_by_name[enum].values_by_number[number].name)

    def value(self, enum: str, name: str) -> int:
        """Return the number of a value of an enum."""
        return int(self._file.enum_types_by_name[enum].values_by_name[name].number)
