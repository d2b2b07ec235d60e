"""The host's settings file, and the container annotations that override it.

The file is TOML and optional::

    share = "namespace"                # pod, namespace, or containers a daemon
    survive = true                     # replace a daemon that is killed

    [output]
    policy = "spool"                   # block, spool or drop
    limit = "64MiB"                    # for each stream, on disk
    max-limit = "1GiB"                 # the largest limit of an annotation
    directory = "/var/lib/trio-shim"

``start`` reads ``share`` and ``survive``, Create reads ``[output]``, so that a correction
applies to the next container.
An unknown key is an error: a misspelt setting would otherwise have no effect, and
the administrator would notice that only when the setting is needed.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shim import names
from shim.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK, SPOOL, DROP = POLICIES = ("block", "spool", "drop")

# The values of ``share``, as the number of containers that one daemon serves at most: a
# daemon for each container or pod, and one without a limit.
OWN, UNLIMITED = 1, 0
_SHARES = {"pod": OWN, "namespace": UNLIMITED}
_MOST_SHARING = 10_000

_SIZE = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB|)")
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# Bytes of the file that are read at most.
_LONGEST = 1 << 16
# The smallest and the largest limit, in bytes: one long line, and more than a disk has.
_LEAST, _MOST = 4096, 1 << 40


@dataclass(frozen=True, slots=True)
class Output:
    """The settings for output that no reader has taken.

    ``limit`` is the number of bytes of one stream that may wait on disk, ``max_limit``
    the largest ``limit`` that an annotation may set, ``directory`` the directory for the
    bytes.  These three apply to the policy ``spool`` only.
    """

    policy: str = BLOCK
    limit: int = 64 << 20
    max_limit: int = 1 << 30
    directory: str = "/var/lib/trio-shim"

    def annotated(self, annotations: Mapping[str, str]) -> Output:
        """Return a copy with the overrides of a container's annotations.

        :raises InvalidError: an annotation of this shim has an invalid value.
        """
        output = self
        if names.OUTPUT_POLICY in annotations:
            policy = _policy(annotations[names.OUTPUT_POLICY], f"annotation {names.OUTPUT_POLICY}")
            output = replace(output, policy=policy)
        if names.OUTPUT_LIMIT in annotations:
            limit = _size(annotations[names.OUTPUT_LIMIT], f"annotation {names.OUTPUT_LIMIT}")
            most = max(self.limit, self.max_limit)
            if limit > most:
                raise InvalidError(
                    f"annotation {names.OUTPUT_LIMIT} may be {most} bytes on this host, not "
                    f"{limit}; {names.HOST_FILE} may allow more as output.max-limit"
                )
            output = replace(output, limit=limit)
        return output


@dataclass(frozen=True, slots=True)
class HostFile:
    """The settings of a host.

    ``share`` is the number of containers that one daemon serves at most: OWN for a daemon
    for each container or pod, UNLIMITED for no limit.  With ``survive`` a daemon that is
    killed is replaced, and its containers run on.
    """

    output: Output = Output()
    share: int = OWN
    survive: bool = False


def share_of(value: Any, where: str) -> int:
    """Return ``value`` as in :attr:`HostFile.share`; ``where`` names it in the error.

    :raises InvalidError: it is neither ``pod``, ``namespace`` nor a number.
    """
    number = value
    if isinstance(value, str):
        if value in _SHARES:
            return _SHARES[value]
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0
    if type(number) is int and 1 <= number <= _MOST_SHARING:
        return number
    raise InvalidError(
        f"{where} must be pod, namespace or a number of containers from 1 to {_MOST_SHARING}, "
        f"not {_shown(value)}"
    )


def read_output(environ: Mapping[str, str]) -> Output:
    """Return the output settings of the host's file; see :func:`read`."""
    return read(environ).output


def read(environ: Mapping[str, str]) -> HostFile:
    """Return the settings of the host's file; without a file, the defaults.

    :raises InvalidError: the file cannot be read or is malformed, or the environment
        names a file that does not exist.
    """
    path = environ.get(names.HOST_FILE_VARIABLE) or names.HOST_FILE
    try:
        data = _read(path)
    except FileNotFoundError:
        if path == names.HOST_FILE:
            return HostFile()
        raise InvalidError(
            f"{names.HOST_FILE_VARIABLE} names {path}, which does not exist"
        ) from None
    except OSError as exc:
        raise InvalidError(f"cannot read {path}: {exc.strerror}") from None
    return parse(data, path)


def _read(path: str) -> bytes:
    # The daemon blocks during the read: a fifo must not block it, and the size is limited.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_fifo = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if is_fifo or len(data := os.read(fd, _LONGEST + 1)) > _LONGEST:
            raise InvalidError(f"{path} is not a settings file; remove it or name another")
    finally:
        os.close(fd)
    return data


def parse(data: bytes, path: str = names.HOST_FILE) -> HostFile:
    """Parse the host's file; errors name it ``path``.

    :raises InvalidError: the file is malformed; the text names the key and the remedy.
    """
    import tomllib  # takes 4 ms, only on hosts with such a file

    try:
        tables = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"{path} is not TOML: {exc}") from None
    _check_keys(tables, ("output", "share", "survive"), path, "")
    share = share_of(tables["share"], f"{path}: share") if "share" in tables else OWN
    survive = tables.get("survive", False)
    if type(survive) is not bool:
        raise InvalidError(f"{path}: survive must be true or false, not {_shown(survive)}")
    return HostFile(_parse_output(tables.get("output", {}), path), share, survive)


def _parse_output(table: Any, path: str) -> Output:
    if not isinstance(table, dict):
        raise InvalidError(f"{path}: output must be a table, [output]")
    _check_keys(table, ("policy", "limit", "max-limit", "directory"), path, "output.")
    output = Output()
    if "policy" in table:
        output = replace(output, policy=_policy(table["policy"], f"{path}: output.policy"))
    if "limit" in table:
        output = replace(output, limit=_size(table["limit"], f"{path}: output.limit"))
    if "max-limit" in table:
        most = _size(table["max-limit"], f"{path}: output.max-limit")
        output = replace(output, max_limit=most)
    if "directory" in table:
        directory = table["directory"]
        if not isinstance(directory, str) or not directory.startswith("/") or "\0" in directory:
            raise InvalidError(f"{path}: output.directory must be an absolute path")
        output = replace(output, directory=directory)
    return output


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], path: str, at: str) -> None:
    for key in table:
        if key not in known:
            names = ", ".join(at + name for name in known)
            raise InvalidError(f"{path}: {_shown(at + key)} is unknown; known keys: {names}")


def _policy(value: Any, where: str) -> str:
    if value not in POLICIES:
        raise InvalidError(f"{where} must be block, spool or drop, not {_shown(value)}")
    return str(value)


def _size(value: Any, where: str) -> int:
    """Return a number of bytes, given as one or as a text such as ``64MiB``."""
    size = -1
    if type(value) is int:
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(match[1]) * _UNITS[match[2]]
    if not _LEAST <= size <= _MOST:
        raise InvalidError(
            f"{where} must be a size from 4KiB to 1024GiB, such as 1048576 or 64MiB, "
            f"not {_shown(value)}"
        )
    return size


def _shown(value: object) -> str:
    return repr(value)[:100]
