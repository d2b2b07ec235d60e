"""The remains of deleted containers, found on the machine.

Nothing here asks containerd or a shim.  Zombies do not count: they wait for
PID 1, which on some machines takes its time.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.e2e.ctr import Ctr

SOCKETS = Path("/run/containerd/s")
RUNC = Path("/run/containerd/runc")
CGROUPS = Path("/sys/fs/cgroup")


def leftovers(ctr: Ctr) -> list[str]:
    """Describe everything of the tests' containers that is still there, one a line."""
    daemon = ctr.containerd
    root, namespace = str(daemon.root), daemon.namespace
    found = [f"process {pid}: {line}" for pid, line in processes(root, namespace, {daemon.pid})]
    found += [f"mount {point}" for point in mounts(root)]
    found += [f"socket {path}" for path in sockets(str(daemon.address), namespace, ctr.ids)]
    found += [f"fifo {path}" for path in fifos(daemon.root / "fifo")]
    for directory in (
        RUNC / namespace,
        daemon.bundle("x").parent,
        daemon.root / "root" / daemon.bundle("x").parent.relative_to(daemon.root / "state"),
        *cgroup_parents(namespace),
    ):
        found += [f"directory {path}" for path in subdirectories(directory)]
    return found


def wait_nothing_left(ctr: Ctr, timeout: float = 15) -> list[str]:
    """Return the remains after ``timeout`` s, or an empty list once there are no remains."""
    return wait_none(lambda: leftovers(ctr), timeout)


def wait_none(find: Callable[[], list[str]], timeout: float = 15) -> list[str]:
    """Return what ``find`` finds after ``timeout`` s, or an empty list once it finds nothing."""
    try:
        wait_until("nothing is left", lambda: not find(), timeout)
    except AssertionError:
        return find()
    return []


def end_fork_servers(root: str) -> None:
    """End the fork server of the shims of ``root``, of which a manager needs one at most."""
    servers = fork_servers(root)
    for pid in servers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until("the fork server is gone", lambda: not fork_servers(root))
    assert len(servers) <= 1, "one manager needs one fork server"


def kill_and_unmount(root: str, group: str, known: Iterable[int], *keep: str) -> None:
    """Kill the processes and undo the mounts of a failed test, but not the mounts ``keep``."""
    for pid, _line in list(processes(root, group, known)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for point in reversed(mounts(root)):
        if point not in keep:
            subprocess.run(["umount", "-l", point], timeout=10, check=False)


def is_shim(line: str) -> bool:
    """Return whether a command line, joined by blanks, is one of a shim of any implementation.

    The name of a directory in it, such as that of the checkout, does not count.
    """
    return re.search(r"containerd-shim[\w.-]*( |$)", line) is not None


def processes(root: str, namespace: str, known: Iterable[int] = ()) -> Iterator[tuple[int, str]]:
    """Find processes that have to do with ``root``.

    A shim shows by its arguments, environment, working directory or open files;
    a container's process by its cgroup.
    """
    skip = {os.getpid(), *known}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in skip:
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line and _belongs(entry, line, root, namespace) and not _is_fork_server(entry):
                yield int(entry.name), line
        except OSError:
            continue  # it ended while we looked


def fork_servers(root: str) -> list[int]:
    """Find the warm parents of the shims of ``root``, which stay for the next ones.

    Their spare children leave with them; one that did not is found too.
    """
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if _is_fork_server(entry) and root.encode() in (entry / "environ").read_bytes():
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if not _is_fork_server(entry.parent / parent):
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def _is_fork_server(entry: Path) -> bool:
    try:
        return (entry / "comm").read_text() == "trio-shim-fork\n"
    except OSError:
        return False


def _belongs(entry: Path, line: str, root: str, namespace: str) -> bool:
    if root in line or root.encode() in (entry / "environ").read_bytes():
        return True
    if f"/{namespace}/" in (entry / "cgroup").read_text():
        return True
    if str((entry / "cwd").readlink()).startswith(root):
        return True
    return any(_link(fd).startswith(root) for fd in (entry / "fd").iterdir())


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def mounts(root: str) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(root + "/")]


# The sockets without a shim from before the manager of the tests that run now.
_earlier: set[Path] = set()


def note_sockets() -> None:
    """Do not take the sockets that other tests left for those of a manager that starts now."""
    _earlier.update(path for path in SOCKETS.glob("*") if _is_refusing(path))


def sockets(address: str, namespace: str, ids: Iterable[str]) -> list[Path]:
    """Find the sockets of shims by name, and those without a shim.

    A shared daemon's socket is named after no container.  Source: containerd's formula,
    pkg/shim SocketAddress.
    """
    there = sorted(set(SOCKETS.glob("*")) - _earlier)
    found = [path for path in there if _is_refusing(path)]
    for name in ids:
        for parts in ((address, namespace, name), (address, namespace, name, "debug")):
            path = SOCKETS / hashlib.sha256("/".join(parts).encode()).hexdigest()
            found += [path] if os.path.lexists(path) else []
    return found


def _is_refusing(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            pass  # it is busy, or was removed during the search
    return False


def fifos(root: Path) -> list[Path]:
    # Through os.walk and lstat: a directory or file may disappear during the search.
    found = (Path(top, name) for top, _, names in os.walk(root) for name in names)
    return [path for path in found if _is_fifo(path)]


def _is_fifo(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(path.lstat().st_mode)
    except OSError:
        return False


def subdirectories(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def cgroup_parents(namespace: str) -> list[Path]:
    """Return the cgroups ctr puts the containers of ``namespace`` into, in each hierarchy."""
    return [CGROUPS / namespace, *CGROUPS.glob(f"*/{namespace}")]
