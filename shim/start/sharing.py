"""Decides whether a container shares a daemon, and with which other containers.

The setting ``share`` is the annotation in config.json, else the runtime option ``Share``,
else that of the host's file.  ``start`` can read these three; the options of Create come
too late, when the daemon is chosen.

A runtime command inherits the daemon's attributes, and the daemon those of the manager
that ran its ``start``.  So containers share a daemon only if their managers have equal
attributes: those of the fork server's identity (:mod:`shim.start.identity`), and those that
a fork server's child copies from its caller.  A hash of all of them is a part of the name
of the daemon's socket.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim import hostfile, names
from shim.container.options import Options
from shim.errors import InvalidError
from shim.start import identity

if TYPE_CHECKING:
    from shim.container.bundle import Config
    from shim.start.flags import Invocation


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a ``start`` comes from.

    ``manager`` is the pid of the process that ran it, ``title`` the executable's name.
    ``identity`` is the name of the fork server's socket; empty if this process has none.
    ``environ`` are the words of the environment, ``NAME=value``.
    """

    manager: int
    title: str
    identity: str
    environ: tuple[bytes, ...]

    @classmethod
    def of_child(cls, manager: int, title: str, server: str) -> Origin:
        """Return the origin of a child of the fork server; ``server`` is its socket's name.

        The server has changed its own attributes since the name was computed.
        """
        words = (b"%s=%s" % pair for pair in os.environb.items())
        return cls(manager, title, server, tuple(sorted(words)))

    @classmethod
    def of_process(cls, manager: int, title: str) -> Origin:
        """Return the origin of a process that does the work of its ``start`` itself."""
        name = os.path.basename(identity.socket_path())  # noqa: PTH119 - a plain string
        # Not os.environ: Python sets LC_CTYPE in it if the locale is C, see PEP 538.
        with open("/proc/self/environ", "rb") as file:
            words = file.read().split(b"\0")
        return cls(manager, title, name, tuple(sorted(word for word in words if b"=" in word)))


@dataclass(frozen=True, slots=True)
class Sharing:
    """A set of daemons that serve containers with the same settings and attributes.

    ``key`` names the set.  ``most`` is the number of containers that one daemon serves at
    most, 0 for no limit.
    """

    key: bytes
    most: int
    socket_dir: str

    def address(self, number: int) -> str:
        """Return the address of the daemon ``number``, which need not exist."""
        import hashlib  # loading OpenSSL takes longer than the rest of the launcher

        # No socket of a pod is the hash of such a text: no namespace contains a NUL byte.
        text = b"trio-shim share\0%d\0%s" % (number, self.key)
        return f"unix://{self.socket_dir}/{hashlib.sha256(text).hexdigest()}"


def sharing_of(invocation: Invocation, config: Config, origin: Origin) -> Sharing | None:
    """Return the daemons that may serve the container; None if only its pod may share with it.

    A container does not share if its options set an attribute of the daemon itself:
    ``shim_cgroup``; ``no_new_keyring``, which shows the daemon's keyring to the container;
    and SCHED_CORE.  It does not share either if its manager has a system call filter, because
    such filters cannot be compared.

    :raises InvalidError: a setting of the container is malformed.
    """
    options = Options.decode(invocation.options)
    most = _setting(config, options)
    own = options.shim_cgroup or options.no_new_keyring or invocation.sched_core
    if most == hostfile.OWN or own or not origin.identity:
        return None
    return Sharing(_key(invocation, origin, most), most, invocation.socket_dir)


def _setting(config: Config, options: Options) -> int:
    if names.SHARE in config.annotations:
        return hostfile.share_of(config.annotations[names.SHARE], f"annotation {names.SHARE}")
    if options.share:
        return hostfile.share_of(options.share, "runtime option Share")
    try:
        return hostfile.read(os.environ).share
    except InvalidError:
        return hostfile.OWN  # Create reports the error, until the file is corrected


def _key(invocation: Invocation, origin: Origin, most: int) -> bytes:
    parts: list[object] = [
        *(origin.identity, origin.title, most),
        *(invocation.namespace, invocation.grpc_address, invocation.ttrpc_address),
        invocation.level,
        _oom_score(origin.manager),
        _umask(),
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)),
        [resource.getrlimit(limit) for limit in _LIMITS],
        _environ(origin.environ),
    ]
    return repr(parts).encode()


def _environ(words: tuple[bytes, ...]) -> list[bytes]:
    """Return the environment; a PWD that is the bundle is equal to that of another one."""
    here = b"PWD=" + os.getcwdb()  # noqa: PTH109 - a plain string
    return [b"PWD=." if word == here else word for word in words]


def _oom_score(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/oom_score_adj") as file:
            return file.read()
    except OSError:
        return ""


def _umask() -> int:
    umask = os.umask(0o077)  # the only way to read it; this process has one thread
    os.umask(umask)
    return umask


_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
