"""Start a shim the way containerd does, and clean up after it the same way.

The executable is run twice in a container's life: with ``start`` it leaves a
daemon behind and prints its address, with ``delete`` it removes what the daemon
could not.  In between the daemon is reached through :mod:`shimctl.client`.

Source: containerd core/runtime/v2/binary.go and shim.go (parseStartResponse),
pkg/shim/util.go for the name of the executable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from google.protobuf.message import DecodeError

from shim.api import bootstrap_pb2, task_pb2
from shim.errors import InvalidError, NotFoundError, ShimError, TimedOutError, UnsupportedError
from shimctl.client import connect
from shimctl.values import Exited, time_of
from shimctl.workdir import events_socket, state_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_RUNTIME = "io.containerd.trio.v2"
START_TIMEOUT = 30  # s
DELETE_TIMEOUT = 5  # s, as containerd's io.containerd.timeout.shim.cleanup
_NEWEST = 3  # the Task API version that we know
_LOG_LIMIT = 64 * 1024  # bytes of a shim's log that are kept


@dataclass(frozen=True, slots=True)
class Launched:
    """A running shim.  ``shim_pid`` is 0 if the shim did not tell."""

    address: str
    version: int
    shim_pid: int = 0


async def launch(
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    debug: bool = False,
    events: str | Path | None = None,
) -> Launched:
    """Start a shim for ``container`` in ``bundle``; return once it answers.

    ``bundle`` is a directory with a config.json, in which the shim leaves files
    of its own; nothing is created in the runtime yet.  ``runtime`` is a runtime's
    name or the path of a shim.  ``events`` is the socket the shim sends events
    to, by default the one ``shimctl events`` listens on; empty for none.

    :raises NotFoundError: there is no such runtime.
    :raises ShimError: the shim failed to start; the message is its own.
    :raises TimedOutError: it did not start within 30 s.
    """
    binary = find_runtime(runtime)
    command = [*_command(binary, container, namespace), *(["-debug"] if debug else []), "start"]
    environment = _environment(namespace, events)
    with open_log(Path(bundle)) as log:
        with trio.move_on_after(START_TIMEOUT) as scope:
            done = await trio.run_process(
                command,
                cwd=bundle,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                process_group=0,  # a Ctrl-C for us is not for the shim
            )
        if scope.cancelled_caught:
            raise TimedOutError(f"{binary} start did not end within {START_TIMEOUT} s")
        if done.returncode:
            said = _last_line(done.stderr) or _last_line(done.stdout) or log.last_line()
            raise ShimError(f"{binary} start failed ({done.returncode}): {said}")
        address, version = parse_answer(done.stdout)
        # A shim opens its log before it serves.  Leaving earlier could leave
        # it without a reader, and some shims wait for one for ever.
        try:
            async with connect(address, namespace=namespace) as shim:
                who = await shim.connect(container)
        except NotFoundError:
            return Launched(address, version)
        except ShimError as exc:
            raise type(exc)(f"{exc}; the shim's log ends: {log.last_line()}") from None
    return Launched(address, version, who.shim_pid)


async def run_delete(
    bundle: str | Path, container: str, *, namespace: str, runtime: str
) -> Exited | None:
    """Run the shim's ``delete`` command, as containerd does once the daemon is gone.

    Returns None if the command failed or did not end within 5 s: it is a last
    resort, and usually finds nothing left to do.
    """
    binary = find_runtime(runtime)
    command = [*_command(binary, container, namespace), "-bundle", str(bundle), "delete"]
    with trio.move_on_after(DELETE_TIMEOUT):
        done = await trio.run_process(
            command,
            cwd=bundle,
            env=_environment(namespace, ""),
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            process_group=0,
        )
        with suppress(DecodeError):
            reply = task_pb2.DeleteResponse.FromString(done.stdout)
            if done.returncode == 0:
                return Exited(reply.exit_status, time_of(reply.exited_at), reply.pid)
    return None


def find_runtime(runtime: str) -> str:
    """Return the executable of ``runtime``: a path as it is, a name by containerd's rule.

    ``io.containerd.NAME.VERSION`` is ``containerd-shim-NAME-VERSION``, on PATH or
    beside the running Python.

    :raises NotFoundError: there is none.
    :raises InvalidError: it is neither a path nor such a name.
    """
    if "/" in runtime:
        if not os.access(runtime, os.X_OK):
            raise NotFoundError(f"there is no executable {runtime}")
        return str(Path(runtime).absolute())
    name, _, version = runtime.rpartition(".")
    name = name.rpartition(".")[2]
    if not name or not version:
        raise InvalidError(f"{runtime!r} is no runtime; say io.containerd.runc.v2, or give a path")
    binary = f"containerd-shim-{name}-{version}"
    found = shutil.which(binary)
    found = found or shutil.which(binary, path=str(Path(sys.executable).parent))
    if found is None:
        raise NotFoundError(f"{binary} is not on PATH; install it or give --runtime a path")
    return found


def parse_answer(answer: bytes) -> tuple[str, int]:
    """Read what ``start`` printed, in any of its three forms: address and version.

    :raises ShimError: it is none of them.
    :raises UnsupportedError: the shim wants another protocol or a newer version.
    """
    address, version, protocol = _fields_of(answer)
    if not address:
        raise ShimError("the shim's start printed no address; see its log in the bundle")
    if protocol not in ("", "ttrpc"):
        raise UnsupportedError(f"the shim speaks {protocol}; only ttrpc is supported")
    if version > _NEWEST:
        raise UnsupportedError(f"the shim wants Task API {version}; {_NEWEST} is the newest known")
    return address, version


def _fields_of(answer: bytes) -> tuple[str, int, str]:
    text = answer.strip()
    if text.startswith(b"{"):
        with suppress(ValueError, TypeError, KeyError):
            fields = json.loads(text)
            return str(fields["address"]), int(fields["version"]), str(fields.get("protocol", ""))
        raise ShimError(f"the shim's start printed broken JSON: {_last_line(text)}")
    if text.startswith((b"unix://", b"/")):
        return text.decode(errors="replace"), 2, "ttrpc"
    try:
        result = bootstrap_pb2.BootstrapResult.FromString(answer)
    except DecodeError:
        raise ShimError(f"the shim's start printed no address: {_last_line(text)}") from None
    return result.address, result.version, result.protocol


def _command(binary: str, container: str, namespace: str) -> list[str]:
    return [
        *(binary, "-namespace", namespace, "-id", container),
        # Nobody listens here: it makes the name of the socket ours.
        *("-address", str(state_directory() / "shimctl.sock")),
        *("-publish-binary", "/bin/true"),
    ]


def _environment(namespace: str, events: str | Path | None) -> dict[str, str]:
    return os.environ | {
        "TTRPC_ADDRESS": str(events_socket() if events is None else events),
        "GRPC_ADDRESS": "",
        "NAMESPACE": namespace,
        "MAX_SHIM_VERSION": "2",
        "GOMAXPROCS": "2",
    }


# The shim's log


@dataclass(slots=True)
class Log:
    """The reading end of a shim's log, and the last of what came out of it."""

    fd: int
    tail: str = ""

    def read(self) -> str:
        """Return what has come since the last time, without waiting."""
        text = b""
        with suppress(BlockingIOError):
            while data := os.read(self.fd, _LOG_LIMIT):
                text += data
        new = text.decode(errors="replace")
        self.tail = (self.tail + new)[-_LOG_LIMIT:]
        return new

    def last_line(self) -> str:
        """Return the latest line; where there was none, say so."""
        self.read()
        return _last_line(self.tail) or "nothing"


@contextmanager
def open_log(bundle: Path) -> Iterator[Log]:
    """Make the ``log`` fifo of ``bundle`` if it has none, and be its reader in the block."""
    path = bundle / "log"
    with suppress(FileExistsError):
        os.mkfifo(path, 0o700)
    # Reading and writing, so that it opens without a writer and never ends.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield Log(fd)
    finally:
        os.close(fd)


def _last_line(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
