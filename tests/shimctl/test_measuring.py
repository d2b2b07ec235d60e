"""Each measured container has a result: figures, or the reason why it has none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from shimctl.discover import PROBE, Found, Health
from shimctl.host.usage import Usage
from shimctl.listing.fields import measured
from shimctl.listing.formatting import Format
from shimctl.listing.measuring import Meter
from shimctl.listing.origin import Origin
from shimctl.listing.row import Row
from shimctl.values import Status
from tests.shimctl.peers import FakeTask, answering, serving

if TYPE_CHECKING:
    from pathlib import Path

    from shimctl.gotemplate import Document


async def test_every_container_without_figures_has_the_reason(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "up", FakeTask(3, "up")) as up,
        answering(tmp_path / "silent", None) as silent,
        answering(tmp_path / "foreign", b"HTTP/1.1 400 Bad Request\r\n\r\n") as foreign,
    ):
        shims = [
            Found("ns", "up", up),
            Found("ns", "known-up", up, health=Health.UP, status=Status.RUNNING),
            Found("ns", "silent", silent),
            Found("ns", "foreign", foreign),
            Found("ns", "dead", f"unix://{tmp_path}/nothing"),
            Found("ns", "none", ""),
            Found("ns", "known", silent, health=Health.SILENT, detail="no answer within 2 s"),
        ]
        started = trio.current_time()
        results = await Meter().measure(shims)
    assert trio.current_time() - started < 3 * PROBE, "they wait for each other"
    assert [one.found.id for one in results] == [found.id for found in shims]
    problems = [one.usage.problem for one in results]
    assert "Stats" in problems[0]  # the peer has no such method
    assert "Stats" in problems[1]
    assert problems[2] == problems[6] == "no answer within 2 s"
    assert problems[3]
    assert "nothing" in problems[4]  # the path of the socket
    assert problems[5] == "the container has no shim"
    assert {one.usage.memory for one in results} == {None}


USAGE = Usage(
    "ns",
    "web",
    Status.RUNNING,
    42,
    41,
    cpu_percent=12.345,
    memory=3 << 20,
    memory_limit=1 << 30,
    memory_percent=0.29,
    pids=3,
    io_read=0,
    io_written=4096,
)
ROW = Row(Found("ns", "4f5c" * 16, ""), Origin("web"))


def shown(document: Document) -> str:
    text = "{{.ID}} {{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.BlockIO}} {{.PIDs}}"
    return Format(text).render([document], str).strip()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, "4f5c4f5c4f5c web 12.35% 3.0MiB / 1.0GiB 0.29% 0B / 4.0KiB 3"),
        (
            replace(USAGE, memory_limit=None, io_read=None, io_written=None),
            "4f5c4f5c4f5c web 12.35% 3.0MiB / max 0.29% - / - 3",
        ),
        (
            Usage("ns", "web", Status.RUNNING, 42, 41, problem="gone"),
            "4f5c4f5c4f5c web - - / - - - / - -",
        ),
    ],
)
def test_the_fields_of_docker_stats_have_a_dash_for_an_unknown_figure(
    usage: Usage, expected: str
) -> None:
    assert shown(measured(ROW, usage)) == expected
    assert measured(ROW, usage, whole=True)["ID"] == ROW.found.id
