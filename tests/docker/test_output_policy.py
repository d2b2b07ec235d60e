"""Output of a container while dockerd is away, by its annotation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_lifecycle import alive
from tests.e2e.test_output_policy import SAID, SAY, spools
from tests.e2e.waiting import wait_until
from tests.matrix import record_not_applicable

if TYPE_CHECKING:
    from tests.docker.docker import Docker

__all__ = ["spools"]

pytestmark = pytest.mark.e2e
SCENARIO = "Output nobody reads"


@pytest.fixture
def annotating(docker: Docker, request: pytest.FixtureRequest) -> Docker | None:
    """Return docker, or None where it knows no annotations."""
    if "--annotation" in docker.ok("run", "--help"):
        return docker
    record_not_applicable(request, "Docker knows no annotations before 24")
    return None


def test_a_spooled_container_ends_meanwhile_and_all_of_it_is_in_the_log(
    annotating: Docker | None,
) -> None:
    if annotating is None:
        return
    docker = annotating
    flags = ("--annotation", "io.trio-shim.output=spool")
    name = docker.start("sh", "-c", SAY, flags=flags)
    pid = docker.pid(name)
    docker.dockerd.kill()
    Path(f"/proc/{pid}/root/go").touch()
    wait_until("it has ended", lambda: not alive(pid), 60)
    docker.dockerd.start()
    assert docker.wait_exit(name) == 6
    assert docker.logs(name) == "\n".join(SAID)


def test_a_policy_there_is_not_is_named(annotating: Docker | None) -> None:
    if annotating is None:
        return
    result = annotating.run("-d", "--annotation", "io.trio-shim.output=spol", "--", "true")
    assert result.code != 0
    assert "annotation io.trio-shim.output must be block, spool or drop" in result.err
