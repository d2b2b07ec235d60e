"""The work of a file stream's helper process: it copies between one file and pipes.

The file may be on a disk that hangs.  Then only this process waits for it, and the
daemon goes on: a thread that waits for a disk cannot be killed, and the sockets and
the pid of its process would stay until the disk responds.

The daemon sends ``GO``, ``DRAIN`` and ``STOP`` over a SOCK_SEQPACKET socket.  It
receives ``OPENED`` or an error once, and one ``DRAINED`` for each ``DRAIN``, with the word
that followed it: the answer to a daemon that was killed is no answer to the next one.

A file that is written is opened with O_APPEND, so that several writers and a log
rotation that truncates it work.  splice(2) refuses such a file with EINVAL; the
bytes are therefore read and written.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from shim import log
from shim.errors import InvalidError, NotFoundError, ShimError
from shim.linux import fifos
from shim.linux.fdpassing import receive
from shim.linux.modes import make_directories

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from shim.linux.fifos import Fd

GO, DRAIN, STOP = b"go", b"drain", b"stop"
OPENED, DRAINED = b"opened", b"drained"

# Bytes in one read.
_READ = 1 << 17
# Bytes of a command, at most.
_COMMAND = 64
# Bytes of an error's text.
_LONGEST = 4000

_ERRORS: dict[str, type[ShimError]] = {cls.__name__: cls for cls in (InvalidError, NotFoundError)}


def open_log_file(path: str) -> Fd:
    """Open a file to append to, and create it and its directories.

    :raises InvalidError: ``path`` is a directory or socket, or a parent is no directory.
    :raises OSError: it cannot be opened or created.
    """
    with fifos.explained(path):
        make_directories(os.path.dirname(path), 0o755, parents=0o755)  # noqa: PTH120 - a plain string
    return fifos.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK)


def open_existing(path: str) -> Fd:
    """Open the file or device at ``path`` to append to.

    :raises NotFoundError: ``path`` does not exist.
    :raises InvalidError: it is neither a file nor a device.
    """
    return fifos.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)


def open_input(path: str) -> Fd:
    """Open the file or device at ``path`` to read from.

    :raises NotFoundError: ``path`` does not exist.
    :raises InvalidError: it is neither a file nor a device.
    """
    return fifos.open_file(path, os.O_RDONLY)


def encode_error(exc: Exception) -> bytes:
    """Return the message that reports ``exc`` to the daemon, for :func:`decode_error`."""
    number = (exc.errno if isinstance(exc, OSError) else 0) or 0
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return f"{type(exc).__name__}\n{number}\n{text}".encode(errors="replace")[:_LONGEST]


def decode_error(message: bytes, path: str) -> Exception:
    """Return the error that :func:`encode_error` encoded.  ``path`` is the file's."""
    name, number, text = message.decode(errors="replace").split("\n", 2)
    if name in _ERRORS:
        return _ERRORS[name](text)
    return OSError(int(number), text, path)


def write_file(path: str, *, create: bool, sources: Sequence[int], control: socket.socket) -> None:
    """Append the bytes of the pipes ``sources`` to the file, until all pipes have ended.

    An error of open(2) is sent over ``control``, and the function returns.
    """
    try:
        sink = open_log_file(path) if create else open_existing(path)
    except (ShimError, OSError) as exc:
        _send(control, encode_error(exc))
        return
    _send(control, OPENED)
    _Writing(path, sink.number, sources, control).run()


def read_file(path: str, *, sink: int, control: socket.socket) -> None:
    """Write the file's content to the pipe ``sink``, until its end or until no reader is left.

    An error of open(2) is sent over ``control``, and the function returns.
    """
    try:
        source = open_input(path).number
    except (ShimError, OSError) as exc:
        _send(control, encode_error(exc))
        return
    _send(control, OPENED)
    if _receive(control) != GO:
        return
    with contextlib.suppress(BrokenPipeError):
        while data := os.read(source, _READ):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(sink, rest) :]


def _send(control: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # the daemon has closed its end
        control.send(message)


def _receive(control: socket.socket) -> bytes:
    """Return the next command; no bytes if the daemon has ended, maybe with messages unread."""
    with contextlib.suppress(ConnectionError):
        return receive(control, _COMMAND)
    return b""


class _Writing:
    """The loop of :func:`write_file`.  It sleeps unless there is something to write."""

    def __init__(
        self, path: str, sink: int, sources: Sequence[int], control: socket.socket
    ) -> None:
        self._path = path
        self._sink = sink
        self._sources = list(sources)
        self._control = control
        self._poll = select.poll()
        self._buffer = memoryview(bytearray(_READ))
        self._failed = False

    def run(self) -> None:
        self._poll.register(self._control, select.POLLIN)
        listening = True
        while self._sources:
            ready = dict(self._poll.poll())
            if listening and self._control.fileno() in ready:
                verb, _, word = _receive(self._control).partition(b" ")
                match verb:
                    case b"go":
                        self._begin()
                    case b"drain":
                        for source in list(self._sources):
                            self._copy(source, fifos.PIPE_SIZE)
                        _send(self._control, DRAINED + b" " + word)
                    case b"":
                        # The daemon has ended; its containers' output is still written.
                        listening = False
                        self._poll.unregister(self._control)
                        self._begin()  # watches the pipes for their end, too
                    case _:
                        return
            for source in list(self._sources):
                if source in ready:
                    self._copy(source, 1)

    def _begin(self) -> None:
        for source in self._sources:
            self._poll.register(source, select.POLLIN)

    def _copy(self, source: int, least: int) -> None:
        """Copy from ``source`` until it is empty, or ``least`` bytes or more were copied."""
        count = 0
        while count < least:
            try:
                size = os.readv(source, [self._buffer])
            except BlockingIOError:
                return
            if not size:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(source)
                self._sources.remove(source)
                return
            self._write(self._buffer[:size])
            count += size

    def _write(self, rest: memoryview) -> None:
        """Write ``rest``; drop it if the write fails."""
        while rest:
            try:
                count = os.write(self._sink, rest)
            except BlockingIOError:
                wait = select.poll()  # the file is a device
                wait.register(self._sink, select.POLLOUT)
                wait.poll()
                continue
            except OSError as exc:
                if not self._failed:
                    log.error("cannot write: output is being dropped", path=self._path, error=exc)
                self._failed = True
                return
            rest = rest[count:]
