"""Output of containers while their manager is away: it is spooled or dropped, and nothing
stops.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from tests.e2e.attached import attached
from tests.e2e.ctr import RUNTIME, STOCK, Ctr
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(RUNTIME == STOCK, reason="the stock shim knows one policy"),
]
SCENARIO = "Output nobody reads"

SPOOLS = Path("/var/lib/trio-shim")
MARKER = re.compile(rb"\n\[trio-shim: (\d+) bytes of output dropped\]\n")
SCRIPT = """\
until test -e /go; do sleep 0.05; done
cat /data
touch /written
until test -e /end; do sleep 0.05; done
exit 5
"""
# Three times the bytes that a fifo holds, in few lines: dockerd writes each line to its log,
# and stops reading two seconds after the exit event.
LINES = 30_000
_TAIL = "x" * 100
SAID = [f"{number}{_TAIL}" for number in range(1, LINES + 1)]
SAY = f"until test -e /go; do sleep 0.05; done; seq 1 {LINES} | sed s/$/{_TAIL}/; exit 6"


@pytest.fixture(autouse=True)
def spools() -> Iterator[None]:
    """Leave the host as it was: the directory is made when it is needed."""
    there = SPOOLS.exists()
    yield
    assert there or not SPOOLS.exists() or not list(SPOOLS.iterdir())
    if not there:
        with suppress(OSError):
            SPOOLS.rmdir()


def started(ctr: Ctr, policy: str, data: bytes) -> tuple[str, Path]:
    """Start a container that writes ``data`` once /go exists; return its id and root
    directory.
    """
    flags = ("--annotation", f"io.trio-shim.output={policy}")
    name = ctr.start("sh", "-c", SCRIPT, flags=flags)
    root = Path(f"/proc/{ctr.pid(name)}/root")
    (root / "data").write_bytes(data)
    return name, root


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    assert len(data) == size, "the stream has ended"
    return data


def test_containers_write_on_while_containerd_is_away(ctr: Ctr) -> None:
    data = os.urandom(1 << 20) * 50
    containers = {policy: started(ctr, policy, data) for policy in ("spool", "drop")}
    ctr.containerd.kill()
    for _, root in containers.values():
        (root / "go").touch()
    for policy, (_, root) in containers.items():
        wait_until(f"all is written under {policy}", (root / "written").exists, 60)
    ctr.containerd.start()

    name, root = containers["spool"]
    with attached(ctr, "task", "attach", name) as process:
        assert process.stdout is not None
        received = read_exactly(process.stdout, len(data))  # type: ignore[arg-type] # a pipe
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        (root / "end").touch()
        assert process.stdout.read() == b""
        assert process.wait(30) == 5

    name, root = containers["drop"]
    with attached(ctr, "task", "attach", name) as process:
        assert process.stdout is not None
        begin = read_exactly(process.stdout, 1 << 20)  # type: ignore[arg-type] # the same
        (root / "end").touch()
        rest = process.stdout.read()
        assert process.wait(30) == 5
    found = MARKER.search(rest)
    assert found is not None
    kept = begin + rest[: found.start()]
    assert data.startswith(kept)
    assert len(kept) + int(found[1]) == len(data)
    assert not rest[found.end() :]


def test_without_a_choice_a_container_waits_for_its_reader(ctr: Ctr) -> None:
    data = bytes(5 << 20)
    name, root = started(ctr, "block", data)
    pid = ctr.pid(name)
    ctr.containerd.kill()
    (root / "go").touch()
    wait_until("it waits", lambda: b"pipe" in wchan_of_child(pid))
    ctr.containerd.start()
    assert alive(pid)
    assert not (root / "written").exists()
    with attached(ctr, "task", "attach", name) as process:
        assert process.stdout is not None
        assert read_exactly(process.stdout, len(data)) == data  # type: ignore[arg-type] # the same
        (root / "end").touch()
        assert process.wait(30) == 5


def wchan_of_child(pid: int) -> bytes:
    """Return where in the kernel the child of a process waits."""
    with suppress(OSError, IndexError):
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        return Path(f"/proc/{child}/wchan").read_bytes()
    return b""


def test_a_policy_there_is_not_is_named(ctr: Ctr) -> None:
    name = ctr.new_id()
    result = ctr.run("-d", "--annotation", "io.trio-shim.output=spol", "--", name, "true")
    assert result.code != 0
    assert "annotation io.trio-shim.output must be block, spool or drop" in result.err
    ctr.ok("c", "rm", name)
