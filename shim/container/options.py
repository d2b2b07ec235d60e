"""The runtime options of a Create request.

For the runtime name of runc, managers send containerd.runc.v1.Options.  For any other name
they send runtimeoptions.v1.Options, which hold a TOML text or the path of one.  A message
of an unknown type is ignored.

Source: containerd api/types/runc/options/oci.proto; the TOML keys are those of
the CRI plugin's and Docker's configuration files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from shim import log, names
from shim.api import options_pb2, runtimeoptions_pb2
from shim.errors import InvalidError
from shim.linux.files import read_whole
from shim.linux.modes import write_file
from shim.runc.command import Runtime
from shim.text import explain
from shim.ttrpc.strings import check_strings

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

# containerd-shim-runc-v2 process/init.go RuncRoot.
DEFAULT_ROOT = "/run/containerd/runc"
_LONGEST = 1 << 20  # bytes of a file of options


@dataclass(frozen=True, slots=True)
class Options:
    """The options, with their names in the .proto.  ``root`` is without the namespace."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    criu_image_path: str = ""
    criu_work_path: str = ""
    share: str = ""  # no runc option: only start reads it, see shim.hostfile

    @classmethod
    def decode(cls, message: AnyMessage | None) -> Options:
        """Return the options in ``message``, or the defaults without a message.

        :raises InvalidError: the bytes, the TOML or a value in it is not well formed.
        """
        if message is None or not message.type_url:
            return cls()
        match names.type_name(message.type_url):
            case names.RUNC_OPTIONS:
                options = options_pb2.Options()
                _parse(options, message.value)
                known = [
                    f.name for f in fields(cls) if f.name in options.DESCRIPTOR.fields_by_name
                ]
                return cls(**{name: getattr(options, name) for name in known})
            case names.GENERIC_OPTIONS:
                generic = runtimeoptions_pb2.Options()
                _parse(generic, message.value)
                return cls._from_generic(generic)
            case other:
                log.warning("ignoring runtime options of an unknown type", type=other)
                return cls()

    @classmethod
    def _from_generic(cls, generic: runtimeoptions_pb2.Options) -> Options:
        if generic.config_body:
            return cls.from_toml(generic.config_body.decode(errors="replace"))
        if generic.config_path:
            try:
                text = read_whole(generic.config_path, _LONGEST).decode(errors="replace")
            except OSError as exc:
                raise InvalidError(f"runtime options: {explain(exc)}") from None
            return cls.from_toml(text)
        return cls()

    @classmethod
    def from_toml(cls, text: str) -> Options:
        """Read keys such as ``BinaryName``; ignore unknown keys.  ``Share`` may be a number.

        :raises InvalidError: the text is not TOML, or a value is of a wrong type.
        """
        import tomllib  # takes 4 ms, and only CRI managers send TOML

        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InvalidError(f"runtime options are not TOML: {exc}") from None
        if type(table.get("Share")) is int:
            table["Share"] = str(table["Share"])
        return cls(**_checked(table, {_toml_key(f.name): f.name for f in fields(cls)}))

    @classmethod
    def read(cls, path: Path) -> Options:
        """Read the file that :meth:`write` wrote; return the defaults if it is unreadable.

        ``delete`` runs after a crash, when any file may be missing.
        """
        try:
            table = json.loads(read_whole(str(path), _LONGEST))
            return cls(**_checked(table, {f.name: f.name for f in fields(cls)}))
        except (OSError, ValueError, RecursionError, InvalidError) as exc:
            log.debug("cannot read the runtime options; using the defaults", error=exc)
            return cls()

    def write(self, path: Path) -> None:
        """Write the options as JSON.

        :raises OSError: the file cannot be written.
        """
        write_file(path, json.dumps(asdict(self)))

    def runtime(self, namespace: str) -> Runtime:
        """Return the runtime to call for a container in ``namespace``."""
        return Runtime(
            binary=self.binary_name or "runc",
            root=f"{self.root or DEFAULT_ROOT}/{namespace}",
            systemd_cgroup=self.systemd_cgroup,
        )


def _parse(message: Message, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        name = message.DESCRIPTOR.full_name
        raise InvalidError(f"the options are not a {name}") from None
    check_strings(message)


def _toml_key(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _checked(table: Any, names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InvalidError("runtime options are not a table")
    kinds = {f.name: type(f.default) for f in fields(Options)}
    values = {}
    for key, name in names.items():
        if key in table:
            value = table[key]
            if type(value) is not kinds[name]:
                raise InvalidError(f"runtime option {key} must be a {kinds[name].__name__}")
            if "\0" in str(value):
                raise InvalidError(f"runtime option {key} holds a NUL byte")
            values[name] = value
    return values
