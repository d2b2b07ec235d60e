"""What the manager said when it called the executable: flags, environment, stdin.

Flags are Go's: one dash or two, ``-id x`` or ``-id=x``, and the first word that
is no flag is the action.  What ``start`` gets on stdin is either containerd
2.3's BootstrapParams, an Any with the runtime's options, or nothing.

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
from shim.ttrpc.strings import check_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET_DIR = "/run/containerd/s"
# Seconds without daemon or caller until a fork server leaves.
DEFAULT_IDLE_TIME = 600.0
# Bytes of stdin that are read at most; containerd's own limit.
STDIN_LIMIT = 10 << 20
# Seconds for the caller to close stdin.
STDIN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line.  A flag that was not given is empty or false."""

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
    """Read what the caller wrote to standard input; a terminal says nothing.

    :raises TimedOutError: the caller did not close it.
    :raises InvalidError: there is no end to it.
    """
    if os.isatty(0):
        return b""
    deadline = time.monotonic() + STDIN_TIMEOUT
    data = b""
    while len(data) <= STDIN_LIMIT:
        if not select.select([0], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimedOutError(
                f"standard input stayed open for {STDIN_TIMEOUT:g} s: close it or give /dev/null"
            )
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return data
        data += chunk
    raise InvalidError(f"standard input is longer than {STDIN_LIMIT} bytes")


def parse_flags(argv: Sequence[str]) -> Flags:
    """Parse the arguments after the program's name.

    :raises InvalidError: a flag is unknown, lacks its value, or has a wrong one.
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
            raise InvalidError(f"flag {word} is not known; see -version and the README")
        key = name.replace("-", "_")
        if is_switch:
            if given and value not in _TRUE + _FALSE:
                raise InvalidError(f"flag -{name} is true or false, not {value!r}")
            values[key] = not given or value in _TRUE
        elif given:
            values[key] = value
        elif rest:
            values[key] = rest.pop(0)
        else:
            raise InvalidError(f"flag -{name} needs a value")
    return replace(Flags(action=rest[0] if rest else ""), **values)  # type: ignore[arg-type] # the kinds above are those of the fields


@dataclass(frozen=True, slots=True)
class Invocation:
    """Everything ``start`` decides by, wherever it came from.

    ``modern`` says that the caller wrote BootstrapParams, so it takes a
    protobuf answer of version 3.  ``options`` is the runtime's, or None.
    ``warning`` is something for the shim's log, which is not open yet.
    ``runtime_timeout`` is how many seconds one command of the runtime may take,
    None where the environment does not say.
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
    """Put together what a call of ``start`` means.

    :raises InvalidError: it lacks a namespace or an id, the environment has a timeout
        that is none, or a string of BootstrapParams holds a NUL byte.
    """
    for name in ("namespace", "id"):
        if not getattr(flags, name):
            raise InvalidError(f"flag -{name} must be given and not empty")
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
    """Return the seconds after which an unused fork server leaves, and what is wrong with them.

    0 is never.
    """
    text = environ.get("TRIO_SHIM_FORKSERVER_IDLE", "")
    if not text:
        return DEFAULT_IDLE_TIME, ""
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds, ""
    return DEFAULT_IDLE_TIME, (
        f"TRIO_SHIM_FORKSERVER_IDLE is a number of seconds, or 0 for no limit, not {text!r}: "
        f"{DEFAULT_IDLE_TIME:g} is used"
    )


def _environment_warnings(environ: Mapping[str, str]) -> list[str]:
    """Say what is wrong with the variables that only make a start faster or slower."""
    found = []
    wanted = environ.get("TRIO_SHIM_FORKSERVER", "")
    if wanted not in launcher.OFF + launcher.ON:
        found.append(f"TRIO_SHIM_FORKSERVER is on or off, not {wanted!r}: on is used")
    if problem := identity.directory_problem(environ.get("TRIO_SHIM_FORKSERVER_DIR", "")):
        found.append(f"{problem}: {identity.DIRECTORY} is used")
    _, problem = idle_time(environ)
    return [*found, problem] if problem else found


def _timeout_of(environ: Mapping[str, str], name: str) -> float | None:
    """Return the time ``name`` is set to, None if it is not set or empty."""
    text = environ.get(name, "")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    raise InvalidError(f"{name} is a number of seconds greater than 0, not {text!r}")


def _bootstrap_params(stdin: bytes, flags: Flags) -> BootstrapParams | None:
    # An Any decodes as BootstrapParams too, and the other way round; only the
    # two fields the command line repeats can tell them apart.
    try:
        params = BootstrapParams.FromString(stdin)
    except DecodeError:
        return None
    matches = params.instance_id == flags.id and params.namespace == flags.namespace
    return params if matches else None


def _any(data: bytes) -> AnyMessage | None:
    """Decode an Any.  Garbage on stdin is none of a container's business: None."""
    try:
        message = AnyMessage.FromString(data)
    except DecodeError:
        log.debug("standard input is neither BootstrapParams nor an Any; ignored")
        return None
    return message if message.type_url else None


def _runc_options(params: BootstrapParams) -> AnyMessage | None:
    return next((e.value for e in params.extensions if is_options(e.value)), None)


def is_options(message: AnyMessage) -> bool:
    """Say whether ``message`` is of a type of runtime options that we know."""
    return names.type_name(message.type_url) in (names.RUNC_OPTIONS, names.GENERIC_OPTIONS)
