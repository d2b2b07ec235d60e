"""ctr run: output, input and exit codes, byte for byte."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.attached import attached
from tests.e2e.ctr import RUNTIME, STOCK, Ctr

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
SCENARIO = "Run"
MIB = 1 << 20


def test_run_prints_and_passes_the_exit_code(ctr: Ctr) -> None:
    result = ctr.run("--rm", "--", ctr.new_id(), "sh", "-c", "echo hi; exit 7")
    assert (result.code, result.text) == (7, "hi\n")


def test_stdout_and_stderr_stay_apart(ctr: Ctr) -> None:
    result = ctr.run("--rm", "--", ctr.new_id(), "sh", "-c", "echo out; echo err >&2")
    assert (result.code, result.text, result.err) == (0, "out\n", "err\n")


def test_every_byte_arrives_and_in_order(ctr: Ctr) -> None:
    script = f"seq 1 10000000 | head -c {10 * MIB}"
    result = ctr.run("--rm", "--", ctr.new_id(), "sh", "-c", script)
    expected = b"".join(b"%d\n" % i for i in range(1, 1_600_000))[: 10 * MIB]
    assert len(result.out) == len(expected)
    assert hashlib.sha256(result.out).digest() == hashlib.sha256(expected).digest()


def test_output_just_before_the_exit_is_not_lost(ctr: Ctr) -> None:
    for _ in range(5):
        result = ctr.run("--rm", "--", ctr.new_id(), "sh", "-c", "head -c 60000 /dev/zero; exit 3")
        assert (result.code, len(result.out)) == (3, 60000)


def test_a_container_reads_what_its_client_writes(ctr: Ctr) -> None:
    # ctr 1.6 does not pass the end of its stdin on for `run`, so the reader stops by itself.
    command = ctr.run_args("--rm", "--", ctr.new_id(), "sh", "-c", "read a; read b; echo $b $a")
    with attached(ctr, *command) as process:
        assert process.stdin is not None
        process.stdin.write(b"x\ny\n")
        process.stdin.flush()
        out, _err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"y x\n")


def test_output_can_go_to_a_file_of_the_hosts(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "new/log"
    script = "echo out; echo err >&2; exit 4"
    name = ctr.start("sh", "-c", script, flags=("--log-uri", f"file://{log}"))
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 4
    lines = set(log.read_text().split())
    # The stock shim closes the file when the first of the two streams ends.
    assert lines == {"err", "out"} or (RUNTIME == STOCK and lines)


def test_a_background_child_that_holds_stdout_does_not_hold_up_the_exit(ctr: Ctr) -> None:
    result = ctr.run("--rm", "--", ctr.new_id(), "sh", "-c", "sleep 1000 & echo done; exit 5")
    assert (result.code, result.text) == (5, "done\n")
