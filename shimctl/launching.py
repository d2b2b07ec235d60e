"""Start a shim the way containerd does, and clean up after it the same way.

The executable is run twice in a container's life: with ``start`` it leaves a
daemon behind and prints its address, with ``delete`` it removes what the daemon
could not.  In between the daemon is reached through :mod:`shimctl.client`.

Who gives up waiting for a ``start`` leaves no shim behind: one that has come to
be is asked to leave again, which takes ``WITHDRAW`` seconds at most.

Source: containerd core/runtime/v2/binary.go and shim.go (parseStartResponse),
pkg/shim/util.go for the name of the executable.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
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
from shimctl import directories as known
from shimctl.face import TRIO
from shimctl.values import Exited, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shimctl.face import Face

DEFAULT_RUNTIME = names.RUNTIME
START_TIMEOUT = 30  # s
DELETE_TIMEOUT = 5  # s, as containerd's io.containerd.timeout.shim.cleanup
WITHDRAW = 5  # s for a start that nobody waits for any more, and for its shim to leave
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
    face: Face = TRIO,
) -> Launched:
    """Start a shim for ``container`` in ``bundle``; return once it answers.

    ``bundle`` is a directory with a config.json, in which the shim leaves files
    of its own; nothing is created in the runtime yet.  Where the shim listens is
    noted there too, in ``bootstrap.json`` as by containerd, for :func:`read_address`.
    ``runtime`` is a runtime's name or the path of a shim.  ``events`` is the socket
    the shim sends events to, by default the one ``shimctl events`` listens on;
    empty for none.  ``face`` is how to wait.

    Cancelling this ends the shim again, if it has come to be; one of a pod that has
    containers already stays.  A ``start`` that does not end within 5 s then is
    killed.  What it may have left by then is a shim without a container: ours
    leaves by itself after half a minute.

    :raises NotFoundError: there is no such runtime, or no such bundle.
    :raises InvalidError: ``runtime`` is neither a path nor a runtime's name, or an
        argument holds a NUL byte.
    :raises UnsupportedError: the shim wants a protocol, or a version of it, we do not have.
    :raises TimedOutError: it did not start within 30 s.
    :raises ShimError: the shim failed to start, and the message is its own; or it
        cannot be run, or nothing be written in the bundle.
    """
    for text in map(str, (bundle, container, namespace, runtime, events)):
        if "\0" in text:
            raise InvalidError(f"{text!r} holds a NUL byte, which no name has")
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
            if not await face.readable(command.pidfd, START_TIMEOUT):
                command.kill()
                raise TimedOutError(f"{binary} start did not end within {START_TIMEOUT} s")  # noqa: TRY301 - what it left is withdrawn
            done = command.finish()
            if done.returncode:
                said = _last_line(done.stderr) or _last_line(done.stdout) or log.last_line()
                raise ShimError(f"{binary} start failed ({done.returncode}): {said}")  # noqa: TRY301 - the same
            address, version = parse_answer(done.stdout)
            # A shim opens its log before it serves.  Leaving earlier could leave
            # it without a reader, and some shims wait for one for ever.
            try:
                async with face.connect(address, namespace=namespace) as shim:
                    pid = (await shim.connect(container)).shim_pid
            except NotFoundError:
                pid = 0
            except ShimError as exc:
                raise type(exc)(f"{exc}; the shim's log ends: {log.last_line()}") from None
            _note(Path(bundle), address, version)
        except BaseException:
            await face.insist(partial(_withdraw, command, namespace, face), 2 * WITHDRAW)
            raise
    return Launched(address, version, pid)


def _note(bundle: Path, address: str, version: int) -> None:
    """Write down in the bundle where its shim listens, as containerd does."""
    path, new = bundle / "bootstrap.json", bundle / ".bootstrap.json.new"
    try:
        found = {"version": version, "address": address, "protocol": "ttrpc"}
        write_file(new, json.dumps(found), 0o644)  # the mode that containerd gives it
        new.replace(path)
    except OSError as exc:
        raise ShimError(f"cannot write {path}: {exc.strerror}") from None


async def _withdraw(command: _Command, namespace: str, face: Face) -> None:
    """Undo a start that nobody waits for any more, as far as it has come."""
    if not await face.readable(command.pidfd, WITHDRAW):
        command.kill()
    done = command.finish()
    with suppress(ShimError):
        address, _ = parse_answer(done.stdout)
        async with face.connect(address, namespace=namespace, timeout=WITHDRAW / 2) as shim:
            await shim.shutdown(timeout=WITHDRAW / 2)  # one with containers stays


async def run_delete(
    bundle: str | Path,
    container: str,
    *,
    namespace: str = "default",
    runtime: str = DEFAULT_RUNTIME,
    face: Face = TRIO,
) -> Exited | None:
    """Run the shim's ``delete`` command, as containerd does once the daemon is gone.

    It ends what the daemon left running, and removes what it left mounted.  Returns
    how the container ended, as far as that is known (128 + SIGKILL where it is not),
    or None if the command failed or did not end within 5 s: it is a last resort,
    and usually finds nothing left to do.

    :raises NotFoundError: there is no such runtime, or no such bundle.
    :raises InvalidError: ``runtime`` is neither a path nor a runtime's name.
    :raises ShimError: the shim cannot be run.
    """
    binary = find_runtime(runtime)
    if not Path(bundle).is_dir():
        raise NotFoundError(f"there is no bundle {bundle}")
    argv = [*_command(binary, container, namespace), "-bundle", str(bundle), "delete"]
    with _open_command(argv, bundle, _environment(namespace, "")) as command:
        if not await face.readable(command.pidfd, DELETE_TIMEOUT):
            return None
        done = command.finish()
    with suppress(DecodeError):
        reply = task_pb2.DeleteResponse.FromString(done.stdout)
        if done.returncode == 0:
            return Exited(reply.exit_status, time_of(reply.exited_at), reply.pid)
    return None


class _Command:
    """A run of the shim's executable; ``pidfd`` is readable once it has ended.

    What it prints goes to memory, not through pipes: nobody has to read along, and
    a daemon that keeps its stdout open keeps nobody waiting.
    """

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, out: int, err: int) -> None:
        self._process = process
        self._out, self._err = out, err
        self.pidfd = pidfd

    def finish(self) -> subprocess.CompletedProcess[bytes]:
        """Return what came of it, once it has ended."""
        code = self._process.wait()
        said = (os.pread(fd, _LOG_LIMIT, 0) for fd in (self._out, self._err))
        return subprocess.CompletedProcess(self._process.args, code, *said)

    def kill(self) -> None:
        """End it, and what it runs; the daemon has a session of its own."""
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
    """Run ``argv`` in ``bundle``; what still runs at the end of the block is killed.

    :raises ShimError: it cannot be run.
    """
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
                process_group=0,  # a Ctrl-C for us is not for the shim
            )
            stack.callback(_end, process)
            pidfd = os.pidfd_open(process.pid)
        except OSError as exc:
            raise ShimError(f"cannot run {argv[0]}: {exc.strerror}") from None
        except ValueError as exc:  # of a name that no argument can have
            raise InvalidError(f"cannot run {argv[0]}: {exc}") from None
        stack.callback(os.close, pidfd)
        yield _Command(process, pidfd, out, err)


def find_runtime(runtime: str) -> str:
    """Return the executable of ``runtime``: a path as it is, a name by containerd's rule.

    ``io.containerd.NAME.VERSION`` is ``containerd-shim-NAME-VERSION``, on PATH or
    beside the running Python.

    :raises NotFoundError: there is none.
    :raises InvalidError: it is neither a path nor such a name.
    """
    if "/" in runtime:
        if not os.access(runtime, os.X_OK) or Path(runtime).is_dir():
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
        # Infinity is a number to json, and no depth is too deep to be printed.
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
        # Nobody listens here: it makes the name of the socket ours.
        *("-address", str(known.state_directory() / "shimctl.sock")),
        *("-publish-binary", "/bin/true"),
    ]


def _environment(namespace: str, events: str | Path | None) -> dict[str, str]:
    return os.environ | {
        "TTRPC_ADDRESS": str(known.events_socket() if events is None else events),
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
    """Make the ``log`` fifo of ``bundle`` if it has none, and be its reader in the block.

    :raises ShimError: there can be none.
    """
    path = bundle / "log"
    try:
        with suppress(FileExistsError):
            make_fifo(path, 0o700)
        # Reading and writing, so that it opens without a writer and never ends.
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ShimError(f"cannot use {path}: {exc.strerror}") from None
    try:
        yield Log(fd)
    finally:
        os.close(fd)


def _last_line(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return text.strip().rpartition("\n")[2]
