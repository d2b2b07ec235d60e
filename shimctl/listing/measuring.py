"""Measure the resource usage of containers repeatedly, from the figures of their shims.

Every container has a result: without figures it has the reason.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil
import trio

from shim.errors import ShimError
from shim.text import explain
from shimctl.client import connect
from shimctl.discover import PROBE, Health
from shimctl.host.processes import memory_of
from shimctl.host.usage import Sample, usage_of, without_figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shimctl.discover import Found
    from shimctl.host.usage import Usage
    from shimctl.values import Stats


@dataclass(frozen=True, slots=True)
class Measured:
    """The usage of one container; ``stats`` is None if its shim has no figures."""

    found: Found
    usage: Usage
    stats: Stats | None = None


class Meter:
    """Measures containers; keeps the previous counters, because a rate needs two."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str, int], Sample] = {}

    async def measure(self, shims: Sequence[Found]) -> list[Measured]:
        """Measure ``shims`` concurrently; the results have their order.

        A shim that does not answer costs :data:`shimctl.discover.PROBE` seconds.
        """
        results: list[Measured] = [
            Measured(found, without_figures(found, _silent())) for found in shims
        ]
        seen: dict[tuple[str, str, int], Sample] = {}
        total = psutil.virtual_memory().total

        async def measure(at: int, found: Found) -> None:
            try:
                with trio.move_on_after(PROBE):
                    found, stats = await _ask(found)
                    sample = Sample(time.monotonic(), stats)
                    key = (found.namespace, found.id, found.pid)
                    seen[key] = sample
                    usage = usage_of(
                        found,
                        sample,
                        self._before.get(key),
                        memory_total=total,
                        shim_memory=memory_of(found.shim_pid),
                    )
                    results[at] = Measured(found, usage, stats)
            except (ShimError, OSError) as exc:
                results[at] = Measured(found, without_figures(found, explain(exc)))

        async with trio.open_nursery() as nursery:
            for at, found in enumerate(shims):
                if problem := _known_problem(found):
                    results[at] = Measured(found, without_figures(found, problem))
                else:
                    nursery.start_soon(measure, at, found)
        self._before = seen
        return results


async def _ask(found: Found) -> tuple[Found, Stats]:
    """Return the figures, and ``found`` with its state and pids if it was not probed."""
    async with connect(found.address, namespace=found.namespace) as shim:
        task = shim.task(found.id)
        if found.health is not Health.UP:
            who = await shim.connect(found.id)
            state = await task.state()
            found = replace(
                found,
                health=Health.UP,
                status=state.status,
                pid=state.pid,
                shim_pid=who.shim_pid,
                bundle=found.bundle or state.bundle,
            )
        return found, await task.stats()


def _known_problem(found: Found) -> str:
    """Return the reason if a probe has shown that ``found`` has no figures."""
    if not found.address:
        return "the container has no shim"
    if found.health in (Health.SILENT, Health.FOREIGN):
        return found.detail or _silent()
    return ""


def _silent() -> str:
    return f"no answer within {PROBE} s"
