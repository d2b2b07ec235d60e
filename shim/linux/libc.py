"""The system calls that the standard library does not wrap, through ctypes.

Each function raises OSError as the functions of ``os`` do, and returns the call's result.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

library = ctypes.CDLL(None, use_errno=True)

# Source: linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15
_PR_SET_PDEATHSIG = 1
_KEYCTL_JOIN_SESSION = 1
_PR_SET_THP_DISABLE = 41
_PR_GET_THP_DISABLE = 42
_PR_SCHED_CORE = 62
_PR_SCHED_CORE_CREATE, _PR_SCHED_CORE_SHARE_FROM = 1, 3
_PIDTYPE_PID, _PIDTYPE_PGID = 0, 2
# Source: asm-generic/mman-common.h
_MADV_DONTNEED = 4

# Source: linux/magic.h, TMPFS_MAGIC and RAMFS_MAGIC.
_IN_MEMORY = (0x01021994, 0x858458F6)

# Source: CPython Include/object.h, _Py_IMMORTAL_REFCNT and _Py_IsImmortal; PEP 683.
_IMMORTAL = 0xFFFFFFFF


def _checked(result: int, name: str | None = None) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def encoded(text: str) -> bytes:
    """Return ``text`` as bytes for a system call.

    :raises OSError: EINVAL, it contains a NUL byte, which would end the argument.
    """
    data = os.fsencode(text)
    if b"\0" in data:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), text)
    return data


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2).  ``data`` must be shorter than a page: the kernel truncates it silently."""
    _checked(
        library.mount(
            encoded(source),
            encoded(target),
            encoded(fstype),
            ctypes.c_ulong(flags),
            encoded(data) if data else None,
        ),
        target,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(library.umount2(encoded(target), flags), target)


# Source: linux/mount.h, linux/fcntl.h, asm-generic/unistd.h: these numbers are the
# same on every architecture that Linux supports since 5.2, except alpha.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x100000
_MS_PRIVATE = 1 << 18


def _syscall(number: int, name: str | None, *args: int | bytes) -> int:
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(library.syscall(ctypes.c_long(number), *wide), name)


def open_tree(path: str, *, recursive: bool) -> int:
    """Clone the mount at ``path``, or the tree of mounts; return its fd.  open_tree(2)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall(_SYS_OPEN_TREE, path, _AT_FDCWD, encoded(path), flags)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def map_ids(tree: int, namespace: int, *, recursive: bool, read_only: bool) -> None:
    """Map the owners of a cloned tree by a user namespace; make it private.  mount_setattr(2)."""
    attributes = _MOUNT_ATTR_IDMAP | (_MOUNT_ATTR_RDONLY if read_only else 0)
    attr = _MountAttr(attributes, 0, _MS_PRIVATE, namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attr)
    pointer = ctypes.addressof(attr)
    _syscall(_SYS_MOUNT_SETATTR, None, tree, b"", flags, pointer, size)


def move_mount(tree: int, target: str) -> None:
    """Attach a cloned tree to a directory.  move_mount(2)."""
    _syscall(
        _SYS_MOVE_MOUNT,
        target,
        *(tree, b"", _AT_FDCWD, encoded(target), _MOVE_MOUNT_F_EMPTY_PATH),
    )


_RENAME_EXCHANGE = 2  # Source: linux/fs.h


def exchange(one: str, other: str) -> None:
    """Exchange the files of two paths on one file system, atomically.  renameat2(2).

    :raises OSError: ENOENT, one of them does not exist; EINVAL or ENOSYS, the file system
        or the C library cannot do it.
    """
    try:
        call = library.renameat2
    except AttributeError:  # musl before 1.2.6
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), other) from None
    result = call(_AT_FDCWD, encoded(one), _AT_FDCWD, encoded(other), _RENAME_EXCHANGE)
    _checked(result, other)


_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # Source: linux/falloc.h


def punch_hole(fd: int, offset: int, count: int) -> None:
    """Free the memory of ``count`` bytes of a file; they are read as zeros.  fallocate(2)"""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    _checked(library.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(count)))


_MSG_DONTWAIT, _MSG_NOSIGNAL = 0x40, 0x4000  # Source: linux/socket.h
_ONE_MESSAGE = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
library.recvmmsg.argtypes = (*_ONE_MESSAGE, ctypes.c_void_p)
library.sendmmsg.argtypes = _ONE_MESSAGE


def receive_counted(fd: int, message: int) -> None:
    """Receive into the struct mmsghdr at the address ``message``, without waiting.  recvmmsg(2)"""
    _checked(library.recvmmsg(fd, message, 1, _MSG_DONTWAIT, None))


def send_counted(fd: int, message: int) -> None:
    """Send the struct mmsghdr at the address ``message``, without waiting.  sendmmsg(2)"""
    _checked(library.sendmmsg(fd, message, 1, _MSG_DONTWAIT | _MSG_NOSIGNAL))


def address_of(data: bytes) -> int:
    """Return the address of the first byte; it is valid while the caller has the object."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


# Source: linux/sched.h
_CLONE_VM = 0x100
_CLONE_FS = 0x200
_CLONE_FILES = 0x400
_CLONE_VFORK = 0x4000
CLONE_NEWUSER = 0x10000000
_STACK = 16384


def own_directory() -> None:
    """Stop sharing the working directory with other threads.  unshare(2) CLONE_FS."""
    _checked(library.unshare(_CLONE_FS))


def clone_ended(namespaces: int) -> int:
    """Make a process in new namespaces that ends at once; return the pid of the zombie.

    It shares our memory (CLONE_VM), so this takes microseconds.  Its end sends no SIGCHLD,
    and only a wait with ``__WALL`` finds it.  clone(2).
    """
    stack = ctypes.create_string_buffer(_STACK)
    top = ctypes.c_void_p(ctypes.addressof(stack) + _STACK & ~0xF)
    flags = _CLONE_VM | _CLONE_VFORK | namespaces
    # It shares our memory: no signal handler of ours may run in it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        end = ctypes.cast(library._exit, ctypes.c_void_p)
        return _checked(library.clone(end, top, flags, None))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def set_child_subreaper(*, wanted: bool = True) -> None:
    """Start, or stop, to be the parent of every orphaned descendant.  prctl(2)."""
    _checked(library.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0))


def die_with_parent() -> None:
    """Make the kernel kill us when the thread that forked us ends.  PR_SET_PDEATHSIG, prctl(2)."""
    _checked(library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def join_new_session_keyring() -> None:
    """Replace the inherited session keyring with an empty one.

    Source: keyctl_join_session_keyring(3); asm/unistd.h.
    """
    number = 250 if os.uname().machine == "x86_64" else 219
    keyring = library.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION), None)
    _checked(keyring)


def set_name(name: str) -> None:
    """Set the name that ``ps -o comm`` shows, truncated to 15 bytes.  prctl(2)."""
    _checked(library.prctl(_PR_SET_NAME, ctypes.c_char_p(os.fsencode(name)[:15]), 0, 0, 0))


# Whether this process has disabled transparent huge pages for itself.
_thp_disabled = False


def unshare_files() -> None:
    """Stop sharing fds, working directory and umask with other threads.  unshare(2)."""
    _checked(library.unshare(_CLONE_FS | _CLONE_FILES))


def is_in_memory(path: str) -> bool:
    """Return whether ``path`` is on tmpfs or ramfs, which never wait for a disk.  statfs(2).

    False if statfs(2) fails.
    """
    # The first member of struct statfs is f_type, a long.
    buffer = (ctypes.c_long * 64)()
    if library.statfs(os.fsencode(path), buffer) == -1:
        return False
    return buffer[0] in _IN_MEMORY


def disable_thp() -> None:
    """Disable transparent huge pages for this process.  prctl(2).

    Its children have none either, unless they are spawned within :func:`thp_of_children`.
    """
    global _thp_disabled
    if not _checked(library.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0)):
        _checked(library.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0))
        _thp_disabled = True


@contextmanager
def thp_of_children() -> Iterator[None]:
    """Undo :func:`disable_thp` for programs that are executed in the block.

    The setting survives an execve(2): without this, no program in a container would
    get huge pages.
    """
    if not _thp_disabled:
        yield
        return
    _checked(library.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0))
    try:
        yield
    finally:
        _checked(library.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0))


def create_core_cookie() -> None:
    """Give this process group a new core scheduling cookie.

    Source: Documentation/admin-guide/hw-vuln/core-scheduling.rst.
    """
    _checked(library.prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_PGID, 0))


def share_core_cookie(pid: int) -> None:
    """Give this process the core scheduling cookie of ``pid``."""
    _checked(library.prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_SHARE_FROM, pid, _PIDTYPE_PID, 0))


def tee(source: int, target: int, count: int) -> int:
    """Copy up to ``count`` bytes from a pipe to another, and leave them in the first.  tee(2).

    Return the number of bytes; 0 if the pipe is empty and has no writer.

    :raises BlockingIOError: the pipe is empty.
    """
    flags = 2  # SPLICE_F_NONBLOCK
    return _checked(library.tee(source, target, ctypes.c_size_t(count), flags))


def drop_text() -> None:
    """Unmap the pages of programs' and libraries' code; the next use maps them again.

    Such a page is never written, so its content is in the file.  madvise(2).
    """
    with open("/proc/self/maps", "rb") as maps:
        lines = [line.split() for line in maps]
    for area, mode, _, _, inode, *_ in lines:
        if mode == b"r-xp" and inode != b"0":
            start, end = (int(word, 16) for word in area.split(b"-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def inotify_init() -> int:
    """Return a new inotify fd, non-blocking and close-on-exec.  inotify(7)."""
    return _checked(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch ``path`` for the events in ``mask``; return the watch descriptor.  inotify(7)."""
    return _checked(library.inotify_add_watch(fd, encoded(path), mask), path)


# Bytes of a sigset_t.  Source: glibc and musl.
SIGSET = 128


# Source: linux/signalfd.h: the flags are those of open(2).
def signalfd(number: int) -> int:
    """Return an fd that is readable while signal ``number``, which is blocked, is pending.

    It is non-blocking and close-on-exec.  signalfd(2).
    """
    wanted = (1 << number - 1).to_bytes(8, sys.byteorder).ljust(SIGSET, b"\0")
    return _checked(library.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC))


def set_title(words: list[str]) -> None:
    """Show ``words`` as this process's command line, truncated to the length of the old one.

    Source: proc(5), /proc/pid/stat fields 48 arg_start and 49 arg_end.
    """
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    # The fields after the name begin with the third.
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    room = end - start
    if start and room > 0:
        text = b"".join(os.fsencode(word) + b"\0" for word in words)[: room - 1]
        ctypes.memmove(start, text.ljust(room, b"\0"), room)


def has_immortals() -> bool:
    """Return whether this CPython has the known layout of immortal objects.

    That is 3.12 or 3.13 with 64 bits.  Debug builds and builds without the GIL have
    another object header and do not count.
    """
    return (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] in ((3, 12), (3, 13))
        and not sys.abiflags
        and sys.byteorder == "little"
        and sys.maxsize > 1 << 32
        and object.__basicsize__ == 16
        and ctypes.c_uint64.from_address(id(None)).value == _IMMORTAL
    )


def make_immortal(objects: Iterable[object]) -> None:
    """Make ``objects`` immortal, where :func:`has_immortals`.

    The interpreter never frees an immortal object and never writes its reference count.
    CPython has no public call for this, so this function writes the reference count that
    marks an object as immortal.  ``objects`` must hold a reference to each object.
    """
    assert has_immortals()
    for one in objects:
        ctypes.c_uint32.from_address(id(one)).value = _IMMORTAL
