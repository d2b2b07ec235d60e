"""Computes the path of the fork server's socket from a process's inheritable attributes.

docs/inheritance.md lists the attributes that a child has from its ancestors through
fork and execve.  The children of a fork server copy some of them from their caller.
Each of the others is a line of the identity.  The name of the server's socket is a hash of
these lines and, after a hyphen, a hash of the version, the package and the interpreter.  So a
process with another value finds another server, or none, and the servers of all versions
with equal attributes have names with the same beginning (:mod:`shim.recovery.registering`).

The native launcher, shimctl/host/native/launcher.c, computes the same text.
"""

from __future__ import annotations

import os
import sys

from shim.version import VERSION

DIRECTORY = "/run/trio-shim-forkserver"
# The most bytes: the path of a socket in the directory must fit into sun_path, unix(7).
_DIRECTORY_MAX = 90
# Source: namespaces(7).  With the "for_children" ones, a child's differ from its parent's.
_NAMESPACES = (
    *("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children"),
    *("time", "time_for_children", "user", "uts"),
)
# Source: proc_pid_status(5).
_STATUS = ("Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp", "Spec")
_FILTERED = "\nSeccomp:\t2"
_FILES = (
    *("cgroup", "attr/current", "attr/apparmor/current", "attr/smack/current"),
    *("coredump_filter", "loginuid", "sessionid", "cpu_resctrl_groups"),
)


def directory() -> str:
    """Return the directory of the fork servers' sockets.

    This is TRIO_SHIM_FORKSERVER_DIR, or the default if that is invalid or not set.
    """
    given = os.environ.get("TRIO_SHIM_FORKSERVER_DIR", "")
    return DIRECTORY if directory_problem(given) else given or DIRECTORY


def directory_problem(given: str) -> str:
    """Return why ``given`` cannot be the directory; empty if it can be, or is empty."""
    if not given or (given.startswith("/") and len(os.fsencode(given)) <= _DIRECTORY_MAX):
        return ""
    return (
        f"TRIO_SHIM_FORKSERVER_DIR must be an absolute path of at most {_DIRECTORY_MAX} bytes, "
        f"not {given!r}"
    )


def socket_path() -> str:
    """Return the path of the socket of this process's fork server; empty if it has none.

    A process with a system call filter has none: the kernel does not show which filter
    it is, so a server with an equal filter cannot be found.

    The hashes are FNV-1a hashes of 64 bits, folded, which the native launcher computes too.
    They separate processes with different attributes, and are no protection: the mode of the
    directory prevents other users from creating sockets in it.
    """
    attributes = _inherited()
    if _FILTERED in attributes:
        return ""
    return f"{directory()}/{_folded(attributes, 40):010x}-{_folded(_code(), 20):05x}"


def identity() -> str:
    """Return the text of which the two hashes are: the code, and the attributes."""
    return f"{_code()}\n{_inherited()}"


def _folded(text: str, bits: int) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode(errors="surrogateescape"):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return (value >> bits ^ value) & (1 << bits) - 1


def _code() -> str:
    """Return the version, the package and the interpreter, one a line."""
    package = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 3 ms
    return f"{VERSION}\n{package}\n{sys.executable}"


def _inherited() -> str:
    """Return the attributes that a daemon inherits and a child cannot copy later, one a line."""
    root = os.stat("/")  # noqa: PTH116 - as above
    lines = [f"{root.st_dev} {root.st_ino}"]
    for name in _NAMESPACES:
        try:
            lines.append(os.readlink(f"/proc/self/ns/{name}"))  # noqa: PTH115 - as above
        except OSError:
            lines.append(name)
    lines += [_read(f"/proc/self/{name}").rstrip("\0\n") for name in _FILES]
    status = _read("/proc/self/status").split("\n")
    lines += [line for line in status if line.startswith(_STATUS)]
    lines.append(_attributes())
    return "\n".join(lines)


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


# Attributes that are in no file of /proc.  Source: linux/prctl.h.
_PRCTL = (
    27,  # PR_GET_SECUREBITS
    30,  # PR_GET_TIMERSLACK
    34,  # PR_MCE_KILL_GET
    42,  # PR_GET_THP_DISABLE
    58,  # PR_GET_IO_FLUSHER
    66,  # PR_GET_MDWE
    68,  # PR_GET_MEMORY_MERGE
)
_PR_SCHED_CORE, _PR_SCHED_CORE_GET = 62, 0
# ioprio_get, sched_getattr, get_mempolicy.  Source: asm/unistd.h.
_NUMBERS = (252, 315, 239) if os.uname().machine == "x86_64" else (31, 275, 236)
_IOPRIO_WHO_PROCESS = 1
# Bytes of struct sched_attr, and the place of its sched_nice, which a child copies.
_SCHED_ATTR, _NICE = 56, slice(16, 20)
_NODES = 1024  # bits of a memory policy's mask


def _attributes() -> str:
    """Return the results of system calls, separated by spaces; -1 is a failed call."""
    # The C part of ctypes: importing the whole module takes 2 ms more.
    import _ctypes

    libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type] # as dlopen(3) has it

    class Byte(_ctypes._SimpleCData):  # type: ignore[type-arg] # not at run time
        _type_ = "B"

    class Buffer(_ctypes.Array):  # type: ignore[type-arg] # as above
        _type_ = Byte
        _length_ = _NODES // 8

    def call(name: str, *arguments: object) -> str:
        return str(_ctypes.call_function(_ctypes.dlsym(libc, name), arguments))

    ioprio_get, sched_getattr, get_mempolicy = _NUMBERS
    found = [call("prctl", number, 0, 0, 0, 0) for number in _PRCTL]
    found.append(call("personality", 0xFFFFFFFF))
    found.append(call("syscall", ioprio_get, _IOPRIO_WHO_PROCESS, 0))
    cookie, schedule, mode, nodes = (Buffer() for _ in range(4))
    found.append(call("prctl", _PR_SCHED_CORE, _PR_SCHED_CORE_GET, 0, 0, cookie))
    found.append(bytes(cookie)[:8].hex())
    found.append(call("syscall", sched_getattr, 0, schedule, _SCHED_ATTR, 0))
    plain = bytearray(bytes(schedule)[:_SCHED_ATTR])
    plain[_NICE] = bytes(4)
    found.append(plain.hex())
    found.append(call("syscall", get_mempolicy, mode, nodes, _NODES, 0, 0))
    found += [bytes(mode)[:4].hex(), bytes(nodes).rstrip(b"\0").hex()]
    return " ".join(found)
