"""A call that cannot work fails with the reason, in a bounded time, and nothing remains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.ctr import RUNTIME, STOCK, Ctr

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
SCENARIO = "Failures"


def test_a_missing_program_is_named(ctr: Ctr) -> None:
    result = ctr.run("--rm", "--", ctr.new_id(), "/no/such/program")
    assert result.code != 0
    assert "/no/such/program" in result.err
    # Once: what runc writes to the container's stderr too is not passed on.
    assert result.err.count("unable to start container process") == 1
    assert "no such file" in result.err


def test_a_program_that_may_not_be_executed_is_named(ctr: Ctr) -> None:
    result = ctr.run("--rm", "--", ctr.new_id(), "/etc")
    assert result.code != 0
    assert "/etc" in result.err
    assert "permission denied" in result.err or "is a directory" in result.err


def test_a_missing_oci_runtime_is_named(ctr: Ctr, tmp_path: Path) -> None:
    # ctr sends runc's own options to the stock runtime only; the others get a file's path.
    options = tmp_path / "options.toml"
    options.write_text('BinaryName = "/no/such/runc"\n')
    flags = (
        ["--runc-binary", "/no/such/runc"]
        if RUNTIME == STOCK
        else ["--runtime-config-path", str(options)]
    )
    result = ctr.run("--rm", *flags, "--", ctr.new_id(), "true")
    assert result.code != 0
    assert "/no/such/runc" in result.err
    assert "no such" in result.err.replace("/no/such/runc", "")


def test_a_missing_shim_is_named(ctr: Ctr) -> None:
    run = ctr.run_args("--rm", "--", ctr.new_id(), "true")
    run[run.index(RUNTIME)] = "io.containerd.nosuch.v2"
    result = ctr(*run)
    assert result.code != 0
    assert "containerd-shim-nosuch-v2" in result.err


def test_a_mount_that_is_not_there_is_named(ctr: Ctr) -> None:
    mount = "type=bind,src=/no/such/directory,dst=/mnt,options=rbind"
    result = ctr.run("--rm", "--mount", mount, "--", ctr.new_id(), "true")
    assert result.code != 0
    assert "/no/such/directory" in result.err


def test_a_failure_does_not_disturb_the_neighbours(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    for _ in range(3):
        assert ctr.run("--rm", "--", ctr.new_id(), "/no/such/program").code != 0
    assert ctr.exec(name, "echo", "fine").text == "fine\n"


def test_an_id_that_failed_can_be_used_again(ctr: Ctr) -> None:
    name = ctr.new_id()
    assert ctr.run("--rm", "--", name, "/no/such/program").code != 0
    result = ctr.run("--rm", "--", name, "echo", "now")
    assert (result.code, result.text) == (0, "now\n")
