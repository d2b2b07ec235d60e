"""Parses the input of the executable: flags, environment and standard input.

Flags have Go's syntax: one dash or two, ``-id x`` or ``-id=x``, and the first word
that is not a flag is the action.  The standard input of ``start`` is either
BootstrapParams (containerd 2.3), an Any with the runtime's options, or empty.

Source: containerd pkg/shim/shim.go parseFlags and compat.go.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from shim import log, names
from shim.api.bootstrap_pb2 import LOG_LEVEL_DEBUG, BootstrapParams
from shim.errors import InvalidError, TimedOutError
from shim.start import identity, launcher
from shim.start.launcher import STDIN_LIMIT, STDIN_TIMEOUT
from shim.ttrpc.strings import check_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET_DIR = "/run/containerd/s"
# Seconds without a daemon and without a call until a fork server exits.
DEFAULT_IDLE_TIME = 600.0
# Deaths of one daemon in a minute at which it is not replaced any more.
DEFAULT_DEATHS = 3


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line.  A flag that is not on it is an empty string or False."""

    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    socket: str = ""
    debug: bool = False
    v: bool = False
    version: bool = False
    info: bool = False
    action: str = ""


_KINDS = {
    field.name.replace("_", "-"): isinstance(field.default, bool)
    for field in fields(Flags)
    if field.name != "action"
}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


def read_stdin() -> bytes:
    """Read standard input to its end; return nothing if it is a terminal.

    :raises TimedOutError: the caller did not close it within 10 s.
    :raises InvalidError: it is longer than 10 MiB.
    """
    if os.isatty(0):
        return b""
    deadline = time.monotonic() + STDIN_TIMEOUT
    data = b""
    while len(data) <= STDIN_LIMIT:
        if not select.select([0], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimedOutError(
                f"cannot read standard input: it was not closed within {STDIN_TIMEOUT:g} s; "
                "close it or use /dev/null"
            )
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return data
        data += chunk
    raise InvalidError(f"cannot read standard input: it is longer than {STDIN_LIMIT} bytes")


def parse_flags(argv: Sequence[str]) -> Flags:
    """Parse the arguments after the program's name.

    :raises InvalidError: a flag is unknown, has no value, or has an invalid value.
    """
    values: dict[str, str | bool] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, given, value = word[2 if word.startswith("--") else 1 :].partition("=")
        is_switch = _KINDS.get(name)
        if is_switch is None:
            raise InvalidError(f"unknown flag {word}; see -version and the README")
        key = name.replace("-", "_")
        if is_switch:
            if given and value not in _TRUE + _FALSE:
                raise InvalidError(f"flag -{name} must be true or false, not {value!r}")
            values[key] = not given or value in _TRUE
        elif given:
            values[key] = value
        elif rest:
            values[key] = rest.pop(0)
        else:
            raise InvalidError(f"flag -{name} needs a value")
    return replace(Flags(action=rest[0] if rest else ""), **values)  # type: ignore[arg-type] # values have the types of _KINDS, which are those of the fields


@dataclass(frozen=True, slots=True)
class Invocation:
    """The parameters of ``start``, from flags, environment and standard input.

    ``modern`` is true if the caller wrote BootstrapParams: then it reads a protobuf
    answer of version 3.  ``options`` are the runtime's options, or None.  ``warning``
    is a text for the shim's log, which is not open yet.  ``runtime_timeout`` is the
    limit for one command of the runtime in seconds, None for the default.
    """

    namespace: str
    id: str
    grpc_address: str
    ttrpc_address: str
    socket_dir: str = SOCKET_DIR
    level: int = log.INFO
    modern: bool = False
    sched_core: bool = False
    options: AnyMessage | None = None
    warning: str = ""
    runtime_timeout: float | None = None


def invocation_of(
    flags: Flags, environ: Mapping[str, str], stdin: bytes, warning: str = ""
) -> Invocation:
    """Return the parameters of ``start``; BootstrapParams override flags and environment.

    ``warning`` is the launcher's; warnings about variables are added to it.

    :raises InvalidError: the namespace or the id is missing, the runtime's timeout in the
        environment is invalid, or a string of BootstrapParams contains a NUL byte.
    """
    for name in ("namespace", "id"):
        if not getattr(flags, name):
            raise InvalidError(f"flag -{name} is missing or empty")
    legacy = Invocation(
        namespace=flags.namespace,
        id=flags.id,
        grpc_address=flags.address,
        ttrpc_address=environ.get("TTRPC_ADDRESS", ""),
        level=log.DEBUG if flags.debug else log.INFO,
        sched_core=bool(environ.get("SCHED_CORE")),
        warning="; ".join([warning, *_environment_warnings(environ)]).removeprefix("; "),
        runtime_timeout=_timeout_of(environ, "TRIO_SHIM_RUNTIME_TIMEOUT"),
    )
    params = _bootstrap_params(stdin, flags)
    if params is None:
        return replace(legacy, options=_any(stdin))
    check_strings(params)
    debug = flags.debug or params.log_level <= LOG_LEVEL_DEBUG
    return replace(
        legacy,
        grpc_address=params.containerd_grpc_address or legacy.grpc_address,
        ttrpc_address=params.containerd_ttrpc_address or legacy.ttrpc_address,
        socket_dir=params.socket_dir or SOCKET_DIR,
        level=log.DEBUG if debug else log.INFO,
        modern=True,
        options=_runc_options(params),
    )


def idle_time(environ: Mapping[str, str]) -> tuple[float, str]:
    """Return the seconds until an unused fork server exits, 0 for never, and a warning.

    The warning is empty if the variable TRIO_SHIM_FORKSERVER_IDLE is valid or not set.
    """
    text = environ.get("TRIO_SHIM_FORKSERVER_IDLE", "")
    if not text:
        return DEFAULT_IDLE_TIME, ""
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds, ""
    return DEFAULT_IDLE_TIME, (
        f"TRIO_SHIM_FORKSERVER_IDLE must be a number of seconds, or 0 for no limit, "
        f"not {text!r}; {DEFAULT_IDLE_TIME:g} is used"
    )


def deaths_limit(environ: Mapping[str, str]) -> tuple[int, str]:
    """Return the deaths in a minute at which a daemon is given up, 0 for no limit, and a warning.

    The warning is empty if the variable TRIO_SHIM_DEATHS is valid or not set.
    """
    text = environ.get("TRIO_SHIM_DEATHS", "")
    if not text or (text.isascii() and text.isdigit() and len(text) < 6):
        return int(text or DEFAULT_DEATHS), ""
    return DEFAULT_DEATHS, (
        f"TRIO_SHIM_DEATHS must be a number of deaths in a minute, or 0 for no limit, "
        f"not {text!r}; {DEFAULT_DEATHS} is used"
    )


def _environment_warnings(environ: Mapping[str, str]) -> list[str]:
    """Return warnings for invalid fork server variables, which need not fail a start."""
    found = []
    wanted = environ.get("TRIO_SHIM_FORKSERVER", "")
    if wanted not in launcher.OFF + launcher.ON:
        found.append(f"TRIO_SHIM_FORKSERVER must be on or off, not {wanted!r}; on is used")
    if problem := identity.directory_problem(environ.get("TRIO_SHIM_FORKSERVER_DIR", "")):
        found.append(f"{problem}; {identity.DIRECTORY} is used")
    problems = idle_time(environ)[1], deaths_limit(environ)[1]
    return [*found, *filter(None, problems)]


def _timeout_of(environ: Mapping[str, str], name: str) -> float | None:
    """Return the seconds that variable ``name`` is set to, None if it is not set or empty.

    :raises InvalidError: the value is not a number, or not greater than 0.
    """
    text = environ.get(name, "")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    raise InvalidError(f"{name} must be a number of seconds greater than 0, not {text!r}")


def _bootstrap_params(stdin: bytes, flags: Flags) -> BootstrapParams | None:
    # An Any decodes as BootstrapParams too, and BootstrapParams as an Any.  Only the two
    # fields that the flags repeat distinguish them.
    try:
        params = BootstrapParams.FromString(stdin)
    except DecodeError:
        return None
    matches = params.instance_id == flags.id and params.namespace == flags.namespace
    return params if matches else None


def _any(data: bytes) -> AnyMessage | None:
    """Decode an Any; return None for other data, which must not fail the container."""
    try:
        message = AnyMessage.FromString(data)
    except DecodeError:
        log.debug("cannot decode standard input as BootstrapParams or an Any; it is ignored")
        return None
    return message if message.type_url else None


def _runc_options(params: BootstrapParams) -> AnyMessage | None:
    return next((e.value for e in params.extensions if is_options(e.value)), None)


def is_options(message: AnyMessage) -> bool:
    """Return whether ``message`` has one of the two known types of runtime options."""
    return names.type_name(message.type_url) in (names.RUNC_OPTIONS, names.GENERIC_OPTIONS)
