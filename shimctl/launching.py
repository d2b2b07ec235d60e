"""Run a shim's ``start`` and ``delete`` commands as containerd does.

``start`` leaves a daemon behind and prints its address.  ``delete`` removes the
resources that a dead daemon left.  Between the two, :mod:`shimctl.client` calls the
daemon.

A caller that cancels a ``start`` leaves no shim behind: a daemon that was started gets
a Shutdown call.

Source: containerd core/runtime/v2/binary.go and shim.go (parseStartResponse),
pkg/shim/util.go for the name of the executable.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from shim import names
from shim.api import bootstrap_pb2, task_pb2
from shim.errors import InvalidError, NotFoundError, ShimError, TimedOutError, UnsupportedError
from shim.linux.modes import make_fifo, write_file
from shimctl import directories
from shimctl.backend import portable
from shimctl.checks import check_id
from shimctl.values import Exited, time_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from shimctl.backend import Backend

DEFAULT_RUNTIME = names.RUNTIME
START_TIMEOUT = 30  # s
DELETE_TIMEOUT = 5  # s, as containerd's io.containerd.timeout.shim.cleanup
WITHDRAW = 5  # s for a cancelled start to end, and again for its shim to answer Shutdown
_NEWEST = 3  # the newest version of the Task API that the client supports
_LOG_LIMIT = 64 * 1024  # the most bytes of a shim's log that are kept


@dataclass(frozen=True, slots=True)
class Launched:
    """A running shim.  ``shim_pid`` is 0 if the shim did not return its pid."""

    address: str
    version: int
    shim_pid: int = 0


@portable
async def launch(
    backend: Backend,
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    debug: bool = False,
    events: str | Path | None = None,
) -> Launched:
    """Start a shim for ``container`` in ``bundle``; return when it answers.

    ``bundle`` is a directory with a config.json.  The shim writes its own files into it.
    The runtime creates no container yet.  Like containerd, this writes the shim's
    address to ``bootstrap.json`` in the bundle, for :func:`shimctl.exits.read_address`.

    ``runtime`` is a runtime's name or the path of a shim.  ``events`` is the socket that
    the shim sends its events to; the default is the socket of ``shimctl events``, and
    an empty string sends none.

    Cancelling this shuts down the shim that was started; a pod's shim that already has
    containers stays.  A cancelled ``start`` is killed if it does not end within 5 s.
    A shim without a container may then remain; the trio shim exits by itself 30 s later.

    :raises NotFoundError: there is no such runtime, or no such bundle.
    :raises InvalidError: the id or the namespace is not valid, ``runtime`` is neither a
        path nor a runtime's name, or an argument contains a NUL byte.
    :raises UnsupportedError: the shim uses another protocol than ttrpc, or a newer Task API.
    :raises TimedOutError: ``start`` did not end within 30 s.
    :raises ShimError: ``start`` failed and the message is the shim's; or the shim cannot
        be run; or a file in the bundle cannot be written.
    """
    for text in map(str, (bundle, container, namespace, runtime, events)):
        if "\0" in text:
            raise InvalidError(f"{text!r} contains a NUL byte; remove it")
    check_id(container)
    check_id(namespace, "namespace")
    binary = find_runtime(runtime)
    if not Path(bundle).is_dir():
        raise NotFoundError(f"there is no bundle {bundle}")
    argv = [*_command(binary, container, namespace), *(["-debug"] if debug else []), "start"]
    environment = _environment(namespace, events)
    with (
        open_log(Path(bundle)) as log,
        _open_command(argv, bundle, environment) as command,
    ):
        try:
            if not await backend.wait_readable(command.pidfd, START_TIMEOUT):
                command.kill()
                raise TimedOutError(f"{binary} start did not end within {START_TIMEOUT} s")  # noqa: TRY301 - the except clause withdraws it
            done = command.finish()
            if done.returncode:
                line = _last_line(done.stderr) or _last_line(done.stdout) or log.last_line()
                raise ShimError(f"{binary} start failed ({done.returncode}): {line}")  # noqa: TRY301 - the same
            address, version = parse_answer(done.stdout)
            # A shim opens its log before it serves.  The log stays open here until the
            # shim answers: some shims block without a reader of the log.
            try:
                async with backend.connect(address, namespace=namespace) as shim:
                    pid = (await shim.connect(container)).shim_pid
            except NotFoundError:
                pid = 0
            except ShimError as exc:
                raise type(exc)(f"{exc}; the shim's log ends: {log.last_line()}") from None
            _write_address(Path(bundle), address, version)
        except BaseException:
            await backend.run_shielded(
                partial(_withdraw, command, namespace, backend), 2 * WITHDRAW
            )
            raise
    return Launched(address, version, pid)


def _write_address(bundle: Path, address: str, version: int) -> None:
    """Write the shim's address to the bundle's bootstrap.json, as containerd does."""
    path, new = bundle / "bootstrap.json", bundle / ".bootstrap.json.new"
    try:
        found = {"version": version, "address": address, "protocol": "ttrpc"}
        write_file(new, json.dumps(found), 0o644)  # the mode that containerd uses
        new.replace(path)
    except OSError as exc:
        raise ShimError(f"cannot write {path}: {exc.strerror}") from None


async def _withdraw(command: _Command, namespace: str, backend: Backend) -> None:
    """Undo a ``start`` that failed or was cancelled: end the command, shut down its shim."""
    if not await backend.wait_readable(command.pidfd, WITHDRAW):
        command.kill()
    done = command.finish()
    with suppress(ShimError):
        address, _ = parse_answer(done.stdout)
        async with backend.connect(address, namespace=namespace, timeout=WITHDRAW / 2) as shim:
            await shim.shutdown(timeout=WITHDRAW / 2)  # a shim that has containers stays


@portable
async def run_delete(
    backend: Backend,
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
) -> Exited | None:
    """Run the shim's ``delete`` command, as containerd does after the daemon has exited.

    ``delete`` kills the processes and removes the mounts that the daemon left; usually
    there are none.  Returns the container's exit status, 128 + SIGKILL if it is unknown.
    Returns None if the command failed or did not end within 5 s.

    :raises NotFoundError: there is no such runtime, or no such bundle.
    :raises InvalidError: the id or the namespace is not valid, or ``runtime`` is neither a
        path nor a runtime's name.
    :raises ShimError: the shim cannot be run.
    """
    check_id(container)
    check_id(namespace, "namespace")
    binary = find_runtime(runtime)
    if not Path(bundle).is_dir():
        raise NotFoundError(f"there is no bundle {bundle}")
    argv = [*_command(binary, container, namespace), "-bundle", str(bundle), "delete"]
    with _open_command(argv, bundle, _environment(namespace, "")) as command:
        if not await backend.wait_readable(command.pidfd, DELETE_TIMEOUT):
            return None
        done = command.finish()
    with suppress(DecodeError):
        reply = task_pb2.DeleteResponse.FromString(done.stdout)
        if done.returncode == 0:
            return Exited(reply.exit_status, time_of(reply.exited_at), reply.pid)
    return None


class _Command:
    """A running command of the shim; ``pidfd`` becomes readable when it has exited.

    Its output goes to memfds, not to pipes.  So the output needs no reader, and a daemon
    that keeps the command's stdout open does not delay the caller.
    """

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, out: int, err: int) -> None:
        self._process = process
        self._out, self._err = out, err
        self.pidfd = pidfd

    def finish(self) -> subprocess.CompletedProcess[bytes]:
        """Wait until the command has exited; return its exit status and output."""
        import subprocess

        code = self._process.wait()
        output = (os.pread(fd, _LOG_LIMIT, 0) for fd in (self._out, self._err))
        return subprocess.CompletedProcess(self._process.args, code, *output)

    def kill(self) -> None:
        """Kill the command's process group; the daemon has its own session."""
        _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _open_command(
    argv: Sequence[str], bundle: str | Path, environment: dict[str, str]
) -> Iterator[_Command]:
    """Run ``argv`` in ``bundle``; kill it if it still runs at the end of the block.

    :raises ShimError: the command cannot be run.
    """
    import subprocess  # late: loads slowly

    with ExitStack() as stack:
        try:
            out = os.memfd_create("stdout", os.MFD_CLOEXEC)
            stack.callback(os.close, out)
            err = os.memfd_create("stderr", os.MFD_CLOEXEC)
            stack.callback(os.close, err)
            process = subprocess.Popen(
                argv,
                cwd=bundle,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,  # a Ctrl-C on our terminal must not signal the shim
            )
            stack.callback(_end, process)
            pidfd = os.pidfd_open(process.pid)
        except OSError as exc:
            raise ShimError(f"cannot run {argv[0]}: {exc.strerror}") from None
        except ValueError as exc:  # an argument contains a NUL byte
            raise InvalidError(f"cannot run {argv[0]}: {exc}") from None
        stack.callback(os.close, pidfd)
        yield _Command(process, pidfd, out, err)


def find_runtime(runtime: str) -> str:
    """Return the path of the executable of ``runtime``, which is a path or a name.

    By containerd's rule the executable of ``io.containerd.NAME.VERSION`` is
    ``containerd-shim-NAME-VERSION``.  It is searched on PATH, then in the directory of
    the running Python.

    :raises NotFoundError: there is no such executable.
    :raises InvalidError: ``runtime`` is neither a path nor such a name.
    """
    if "/" in runtime:
        if not os.access(runtime, os.X_OK) or Path(runtime).is_dir():
            raise NotFoundError(f"there is no executable {runtime}")
        return str(Path(runtime).absolute())
    name, _, version = runtime.rpartition(".")
    name = name.rpartition(".")[2]
    if not name or not version:
        raise InvalidError(
            f"{runtime!r} is not a runtime; use a name such as io.containerd.runc.v2, or a path"
        )
    binary = f"containerd-shim-{name}-{version}"
    found = shutil.which(binary)
    found = found or shutil.which(binary, path=str(Path(sys.executable).parent))
    if found is None:
        raise NotFoundError(f"{binary} is not on PATH; install it or give --runtime a path")
    return found


def parse_answer(answer: bytes) -> tuple[str, int]:
    """Return the address and the Task API version in the output of ``start``.

    The output is an address, JSON or a BootstrapResult message.

    :raises ShimError: the output is none of these.
    :raises UnsupportedError: the shim uses another protocol than ttrpc, or a newer version.
    """
    address, version, protocol = _fields_of(answer)
    if not address:
        raise ShimError("the shim's start printed no address; see its log in the bundle")
    if protocol not in ("", "ttrpc"):
        raise UnsupportedError(f"the shim uses {protocol}; only ttrpc is supported")
    if version > _NEWEST:
        raise UnsupportedError(
            f"the shim uses Task API {version}; {_NEWEST} is the newest supported"
        )
    return address, version


def _fields_of(answer: bytes) -> tuple[str, int, str]:
    text = answer.strip()
    if text.startswith(b"{"):
        # json reads Infinity as a number, and deep nesting raises RecursionError.
        with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
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
        # No process listens on this address.  The shim derives its socket's name from it.
        *("-address", str(directories.state_directory() / "shimctl.sock")),
        *("-publish-binary", "/bin/true"),
    ]


def _environment(namespace: str, events: str | Path | None) -> dict[str, str]:
    return os.environ | {
        "TTRPC_ADDRESS": str(directories.events_socket() if events is None else events),
        "GRPC_ADDRESS": "",
        "NAMESPACE": namespace,
        "MAX_SHIM_VERSION": "2",
        "GOMAXPROCS": "2",
    }


# The shim's log


@dataclass(slots=True)
class Log:
    """The read end of a shim's log, and the last ``_LOG_LIMIT`` characters of the log."""

    fd: int
    tail: str = ""

    def read(self) -> str:
        """Return the text written since the last call; this does not wait."""
        text = b""
        with suppress(BlockingIOError):
            while data := os.read(self.fd, _LOG_LIMIT):
                text += data
        new = text.decode(errors="replace")
        self.tail = (self.tail + new)[-_LOG_LIMIT:]
        return new

    def last_line(self) -> str:
        """Return the last line, or "nothing" if the log is empty."""
        self.read()
        return _last_line(self.tail) or "nothing"


@contextmanager
def open_log(bundle: Path) -> Iterator[Log]:
    """Open the ``log`` fifo of ``bundle`` for the block; create it if it does not exist.

    :raises ShimError: the fifo cannot be created or opened.
    """
    path = bundle / "log"
    try:
        with suppress(FileExistsError):
            make_fifo(path, 0o700)
        # O_RDWR opens without a writer and never reads EOF.
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ShimError(f"cannot open {path}: {exc.strerror}") from None
    try:
        yield Log(fd)
    finally:
        os.close(fd)


def _last_line(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return text.strip().rpartition("\n")[2]
