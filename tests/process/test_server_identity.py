"""Which fork server a start may use: that of its own code, cgroup, namespaces and root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shim.start import identity
from tests.process.rig import wait_gone
from tests.process.servers import ROOT, Server, parent_of

if TYPE_CHECKING:
    import pytest


async def test_another_build_gets_another_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = identity.socket_path()
    monkeypatch.setattr(identity, "VERSION", "99.0")
    assert identity.socket_path() != ours


async def test_another_cgroup_or_namespace_gets_another_server(server: Server) -> None:
    script = "from shim.start.identity import socket_path; print(socket_path())"
    command = [sys.executable, "-c", script]

    def path(*prefix: str) -> str:
        done = subprocess.run([*prefix, *command], cwd=ROOT, capture_output=True, check=True)
        return done.stdout.decode()

    assert path() == path()
    for flag in ("--mount", "--ipc", "--uts", "--net", "--pid", "--time"):
        assert path("unshare", flag) != path(), flag


def test_another_root_directory_gets_another_server(tmp_path: Path) -> None:
    script = "from shim.start.identity import socket_path; print(socket_path())"
    directories = [str(tmp_path / name) for name in ("upper", "work", "root")]
    for directory in directories:
        Path(directory).mkdir()
    upper, work, root = directories
    # Both in one mount namespace, and the programs are the same under both roots.
    steps = [
        f"mount -t tmpfs none {tmp_path}",
        f"mkdir {upper} {work} {root}",
        f"mount -t overlay -o lowerdir=/,upperdir={upper},workdir={work} none {root}",
        f"mount --rbind /proc {root}/proc",
        *(f"mount --rbind {place} {root}{place}" for place in (str(ROOT), sys.prefix)),
        f'cd {ROOT}; "$@"; chroot {root} sh -c \'cd {ROOT}; "$@"\' sh "$@"',
    ]
    command = ["unshare", "--mount", "sh", "-ec", "; ".join(steps), "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first != second


async def test_a_server_of_changed_code_refuses_and_leaves(server: Server, tmp_path: Path) -> None:
    copy = tmp_path / "lib"
    copy.mkdir()
    subprocess.run(["cp", "-r", str(ROOT / "shim"), str(copy)], check=True)
    bundles = [server.rig.bundle(f"c{i}", "true") for i in range(2)]
    await server.start(bundles[0], PYTHONPATH=str(copy))
    pid = await server.wait_up()
    with (copy / "shim/version.py").open("a") as file:
        file.write("# changed\n")
    daemon = await server.start(bundles[1], PYTHONPATH=str(copy))
    assert parent_of(daemon) != pid
    await wait_gone([pid])
