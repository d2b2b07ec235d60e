"""The ways to choose this shim, and an OCI runtime for it, in each dockerd."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.docker.dockerd import EXECUTABLE
from tests.e2e.ctr import RUNTIME, STOCK
from tests.matrix import record_not_applicable

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Ways to choose the shim"


def test_each_way_to_name_the_shim_runs_a_container(docker: Docker) -> None:
    for runtime in docker.dockerd.runtimes:
        result = docker.sh("echo $0; exit 3", "--runtime", runtime)
        assert (result.code, result.text) == (3, "sh\n"), (runtime, result)


def test_under_the_stock_shims_name_a_copy_and_a_wrapper_do_as_well(
    docker: Docker, request: pytest.FixtureRequest
) -> None:
    if not docker.dockerd.old or RUNTIME == STOCK:
        record_not_applicable(request, "a dockerd from 23 on is told the shim's name")
        return
    stand_in = docker.dockerd.stand_in
    stand_in.unlink()
    try:
        shutil.copy(EXECUTABLE, stand_in)
        assert docker.sh("exit 3").code == 3
        stand_in.write_text(f'#!/bin/sh\nexec "{EXECUTABLE}" "$@"\n')
        assert docker.sh("exit 4").code == 4
    finally:
        stand_in.unlink()
        stand_in.symlink_to(EXECUTABLE)


def test_daemon_json_chooses_the_oci_runtime(docker: Docker) -> None:
    name = docker.start("sleep", "1000", flags=("--runtime", "noted"))
    assert docker.exec(name, "sh", "-c", "exit 5").code == 5
    docker.ok("rm", "-f", name)
    lines = docker.dockerd.runc_log.read_text().splitlines()
    for verb in ("create", "start", "exec", "delete"):
        assert any(verb in line.split() for line in lines), (verb, lines)
    # Where the state is: docker's directory for all its runtimes, or the one in the options.
    root = docker.dockerd.root / ("exec/runtime-runc" if docker.dockerd.old else "state") / "moby"
    assert all(line.startswith(f"--root {root} ") for line in lines), lines
