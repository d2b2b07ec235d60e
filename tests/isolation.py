"""Runs a command isolated from the host and from other workers (``tests/worker``).

A worker has its own

- mount, pid, network, IPC and UTS namespaces: an empty /run, a loopback interface, no
  process, abstract socket or port of another worker;
- cgroups: a child of this process's cgroup in every mounted hierarchy, made the root of a
  cgroup namespace and mounted in the place of the host's, so that a manager, a runtime and
  a shim take it for the root of the hierarchy;
- directory /var/lib/trio-shim, where spools and images are by default.

With SHIM_TEST_SHARE=namespace, or another value of the setting ``share``, its shims read
that setting from a file in its /run, unless a test names another file.  With
SHIM_TEST_SURVIVE=1 the file has ``survive = true``, and with SHIM_TEST_KILL=SECONDS a
random daemon is killed each SECONDS.

Loop devices, /tmp and the kernel's log remain the host's.

Three processes: the outer one stays in the host's namespaces, makes the cgroups and removes
them at the end; ``unshare`` makes the namespaces; the inner one is pid 1 in them, prepares
the mounts, starts the command and reaps orphans.  When the outer one is killed, so is every
process of the worker; its cgroups and its directory in /var/tmp are then removed by the
next worker that is started.

Without the right to make cgroups, a worker shares the host's, and a message names the
reason.  ``tests/worker --check`` exits with 0 if workers are completely isolated.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim.linux import libc, mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parent.parent
# The prefixes of a worker's cgroups, before the outer process's pid, and of its directory.
PREFIX = "trio-shim-worker-"
STATE_PREFIX = "trio-shim-tests-"
STATE = "/var/lib/trio-shim"
TEMPORARY = "/var/tmp"  # on a disk, as /var/lib is
_NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts")
_FEWEST = ("--mount", "--pid")
# The group of a worker's processes in a hierarchy of version 2: there only a group without
# processes can give its controllers to the groups below it.
_LEAF = "worker"
_MOUNTED = "/sys/fs/cgroup"
_INNER = "--inner"
_HOST_FILE = "/run/trio-shim.toml"
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from tests.isolation import main; main()"
)
_REMOVAL = 10.0  # seconds for a killed process to leave its cgroup
_YOUNG = 10.0  # seconds in which a worker locks its new cgroup
# Source: linux/mount.h, linux/sched.h, linux/sockios.h, linux/if.h.
_MNT_DETACH = 2
_CLONE_NEWCGROUP = 0x02000000
_MS_BIND = 4096
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy: its type, its mount option and point, and our cgroup in it."""

    kind: str
    option: str
    point: str
    group: Path


def hierarchies() -> list[Hierarchy]:
    """Return the cgroup hierarchies that are mounted."""
    mounts = mountinfo.read()
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        kind = "cgroup" if names else "cgroup2"
        wanted = set(names.split(",")) if names else set()
        for mount in mounts:
            if mount.fstype == kind and wanted <= mount.options:
                group = Path(mount.point) / os.path.relpath(path, mount.root)
                option = f"none,{names}" if names.startswith("name=") else names
                found.append(Hierarchy(kind, option, mount.point, group))
                break
    return found


def own_groups() -> list[Path]:
    """Return the cgroup of this process in each mounted hierarchy."""
    return [hierarchy.group for hierarchy in hierarchies()]


class Groups:
    """A worker's cgroups, one in each hierarchy; locked while the outer process lives."""

    def __init__(self) -> None:
        self._made: list[Path] = []
        self._locks: list[int] = []

    def make(self) -> None:
        """Make them below this process's cgroups.

        :raises OSError: this process may not.
        """
        for parent in own_groups():
            group = parent / f"{PREFIX}{os.getpid()}"
            group.mkdir()
            self._made.append(group)
            lock = os.open(group, os.O_RDONLY)
            self._locks.append(lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new cgroup of version 1
                if (group / name).exists():
                    (group / name).write_text((parent / name).read_text())
            if (group / "cgroup.controllers").exists():
                (group / _LEAF).mkdir()

    def enter(self) -> None:
        """Move this process into them, and make them the roots of a cgroup namespace."""
        for group in self._made:
            (group / "cgroup.procs").write_text("0")
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWCGROUP) == -1:
            raise OSError(ctypes.get_errno(), "cannot make a cgroup namespace")
        for group in self._made:
            if (group / _LEAF).exists():
                (group / _LEAF / "cgroup.procs").write_text("0")

    def remove(self) -> None:
        """Remove them and everything below them."""
        for group in self._made:
            remove_group(group)
        for lock in self._locks:
            os.close(lock)
        self._made.clear()
        self._locks.clear()


def remove_group(top: Path) -> None:
    """Kill the processes in a cgroup and below it, and remove it; a failure is reported."""
    deadline = time.monotonic() + _REMOVAL
    while top.exists():
        try:
            for directory, _, _ in os.walk(top, topdown=False):
                _kill(Path(directory))
                Path(directory).rmdir()
        except OSError as exc:
            if time.monotonic() > deadline:
                print(f"tests/worker: cannot remove {exc.filename or top}: {exc}", file=sys.stderr)
                return
            time.sleep(0.05)  # the kernel reports no end of a process in another's cgroup


def _kill(group: Path) -> None:
    with suppress(OSError):  # a frozen process of version 1 cannot be killed
        (group / "freezer.state").write_text("THAWED")
    with suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            if int(pid) > 0:  # 0 is a process outside of this pid namespace
                os.kill(int(pid), signal.SIGKILL)


def sweep(parents: list[Path], young: float = _YOUNG) -> None:
    """Remove the cgroups below ``parents`` of workers that were killed.

    A group that is not locked and ``young``, in seconds, may be about to be locked.
    """
    for parent in parents:
        for group in _abandoned(parent.glob(f"{PREFIX}*"), young):
            remove_group(group)


def sweep_states(young: float = _YOUNG) -> None:
    """Remove the directories in /var/tmp of workers that were killed; see :func:`sweep`."""
    for directory in _abandoned(Path(TEMPORARY).glob(f"{STATE_PREFIX}*"), young):
        shutil.rmtree(directory, ignore_errors=True)


def _abandoned(directories: Iterable[Path], young: float) -> Iterator[Path]:
    """Yield those that no worker has locked and that are not ``young``."""
    for directory in directories:
        with suppress(OSError):
            if time.time() - directory.stat().st_mtime < young:
                continue
            fd = os.open(directory, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its worker lives
            finally:
                os.close(fd)
            yield directory


def run(command: list[str], *, strict: bool = False) -> int:
    """Run ``command`` in a worker; return its exit status.

    :raises OSError, subprocess.SubprocessError: ``strict`` is set, and the isolation would
        not be complete.
    """
    sweep(own_groups())
    sweep_states()
    groups = Groups()
    namespaces: tuple[str, ...] = _NAMESPACES
    state = tempfile.mkdtemp(prefix=STATE_PREFIX, dir=TEMPORARY)
    lock = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            groups.make()
            subprocess.run(
                ["unshare", *namespaces, "--fork", "true"], preexec_fn=groups.enter, check=True
            )
        except (OSError, subprocess.SubprocessError) as exc:
            if strict:
                raise
            groups.remove()
            namespaces = _FEWEST
            print(f"tests/worker: sharing the host's cgroups and network: {exc}", file=sys.stderr)
        flags = ["--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        python = [sys.executable, "-I", "-S", "-c", _START, str(ROOT), _INNER]

        def enter() -> None:
            libc.die_with_parent()
            if namespaces is not _FEWEST:
                groups.enter()

        child = subprocess.Popen(
            ["unshare", *namespaces, *flags, *python, str(len(namespaces)), state, *command],
            preexec_fn=enter,
            close_fds=False,
        )
        return _wait(child)
    finally:
        groups.remove()
        shutil.rmtree(state, ignore_errors=True)
        os.close(lock)


def _wait(child: subprocess.Popen[bytes]) -> int:
    def end(_number: int, _frame: object) -> None:
        child.kill()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command, too
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    return _status(child.wait())


def _status(code: int) -> int:
    """Return the exit status of a process as a shell would."""
    return code if code >= 0 else 128 - code


def _write_host_file() -> None:
    settings = ""
    if share := os.environ.get("SHIM_TEST_SHARE"):
        settings += f'share = "{share}"\n'
    if os.environ.get("SHIM_TEST_SURVIVE"):
        settings += "survive = true\n"
        os.environ["TRIO_SHIM_DEATHS"] = "0"  # no limit
    if settings:
        Path(_HOST_FILE).write_text(settings)
        os.environ["TRIO_SHIM_CONFIG"] = _HOST_FILE


def inner(state: str, command: list[str], *, isolated: bool) -> int:
    """Be pid 1: prepare the namespaces, run ``command``, reap orphans until it ends."""
    libc.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    Path("/run/lock").mkdir()
    Path("/run/lock").chmod(0o1777)
    Path(STATE).mkdir(parents=True, exist_ok=True)
    libc.mount(state, STATE, "", _MS_BIND)
    _write_host_file()
    if isolated:
        _raise_loopback()
        _mount_groups()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Tests interrupt programs, and a shell that runs us in the background ignores SIGINT.
    child = subprocess.Popen(
        command, close_fds=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    if seconds := os.environ.get("SHIM_TEST_KILL"):
        # It ends with the namespace.
        subprocess.Popen([sys.executable, "-m", "tests.killing", seconds])
    status = None
    while status is None:
        pid, ended = os.wait()
        if pid == child.pid:
            status = _status(os.waitstatus_to_exitcode(ended))
    if isolated:
        # The kernel now kills the namespace and waits; it would wait for a frozen process.
        for directory, _, _ in os.walk(_MOUNTED):
            with suppress(OSError):
                Path(directory, "freezer.state").write_text("THAWED")
    return status


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack_from("h", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _mount_groups() -> None:
    """Mount each hierarchy anew where it was: its root is then the worker's cgroup."""
    found = hierarchies()
    links = {path.name: path.readlink() for path in Path(_MOUNTED).iterdir() if path.is_symlink()}
    for point in reversed(mountinfo.mounts_below(_MOUNTED)):
        libc.umount2(point, _MNT_DETACH)
    if all(hierarchy.point != _MOUNTED for hierarchy in found):
        libc.mount("tmpfs", _MOUNTED, "tmpfs", 0, "mode=755")
    for hierarchy in sorted(found, key=lambda hierarchy: hierarchy.point):
        Path(hierarchy.point).mkdir(parents=True, exist_ok=True)
        libc.mount(hierarchy.kind, hierarchy.point, hierarchy.kind, 0, hierarchy.option)
    for name, target in links.items():
        Path(_MOUNTED, name).symlink_to(target)


def main() -> None:
    """Run the command line of ``tests/worker``."""
    try:
        match sys.argv[1:]:
            case ["--check"]:
                status = run(["true"], strict=True)
            case ["--inner", namespaces, state, *command]:
                status = inner(state, command, isolated=int(namespaces) == len(_NAMESPACES))
            case command:
                status = run(command)
    except (OSError, subprocess.SubprocessError) as exc:
        print(f"tests/worker: {exc}", file=sys.stderr)
        status = 1
    sys.exit(status)
