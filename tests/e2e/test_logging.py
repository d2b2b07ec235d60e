"""Output that goes to a file or to a logging program, not to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_lifecycle import COUNT
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Logging"

# A logger has stdout on 3 and stderr on 4; it closes 5 when it is ready.
LOGGER = """\
#!/bin/sh
PATH=/usr/bin:/bin
cd {directory}
echo "$CONTAINER_ID" "$@" >called
exec 5>&-
cat <&3 >out &
cat <&4 >err &
exec 3<&- 4<&-
wait
touch finished
"""


def logger(directory: Path) -> str:
    directory.mkdir()
    program = directory / "logger"
    program.write_text(LOGGER.format(directory=directory))
    program.chmod(0o755)
    return f"binary://{program}?key=value"


def test_a_program_of_ones_own_gets_both_streams_to_their_end(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "seq 20000; echo err >&2; exit 3"
    name = ctr.start("sh", "-c", script, flags=("--log-uri", logger(log)))
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 3
    assert (log / "finished").exists()
    assert (log / "called").read_text() == f"{name} key value\n"
    assert (log / "out").read_text() == "".join(f"{i}\n" for i in range(1, 20001))
    assert (log / "err").read_text() == "err\n"


def test_an_exec_logs_where_it_is_told_to(ctr: Ctr, tmp_path: Path) -> None:
    name, log, path = ctr.start("sleep", "1000"), tmp_path / "log", tmp_path / "file"
    for exec_id, uri, code in (("one", logger(log), 4), ("two", f"file://{path}", 5)):
        script = f"while ! test -e /go; do sleep 0.05; done; echo {exec_id}; exit {code}"
        command = ("--exec-id", exec_id, name, "sh", "-c", script)
        ctr.ok("task", "exec", "-d", "--log-uri", uri, *command)
    ctr.touch(name, "/go")
    assert ctr.wait_exec(name, "one") == 4
    assert ctr.wait_exec(name, "two") == 5
    assert (log / "called").read_text() == "one key value\n"
    assert (log / "out").read_text() == "one\n"
    assert path.read_text() == "two\n"


def test_a_logger_goes_on_while_containerd_is_away(ctr: Ctr, tmp_path: Path) -> None:
    log = tmp_path / "log"
    name = ctr.start("sh", "-c", COUNT, flags=("--log-uri", logger(log)))
    ctr.containerd.kill()
    wait_more(log / "out")
    ctr.containerd.start()
    wait_more(log / "out")
    ctr.kill(name)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 137
    numbers = [int(line) for line in (log / "out").read_text().split()]
    assert numbers == list(range(1, len(numbers) + 1))


def wait_more(path: Path) -> None:
    size = path.stat().st_size
    wait_until("it counts on", lambda: path.stat().st_size > size + 4)


def test_a_logger_that_is_not_there_is_named(ctr: Ctr) -> None:
    name = ctr.new_id()
    result = ctr.run("-d", "--log-uri", "binary:///no/such/logger", "--", name, "true")
    assert result.code != 0
    assert "/no/such/logger" in result.err
    ctr.ok("c", "rm", name)
