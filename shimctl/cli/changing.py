"""Change the containers that the command line names, and print which were changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
import trio

from shim.text import printable
from shimctl.cli.report import report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from shimctl.cli.output import Out
    from shimctl.cli.parameters import Where
    from shimctl.discover import Found

    Change = Callable[[Found], Awaitable[Mapping[str, object]]]

_AT_ONCE = 50  # containers, as docker's client


@dataclass(slots=True)
class _Outcome:
    """The change of the container that the command line calls ``name``."""

    name: str
    found: Found | None = None
    result: Mapping[str, object] = field(default_factory=dict)
    failure: Exception | None = None
    over: trio.Event = field(default_factory=trio.Event)

    async def run(self, change: Change) -> None:
        """Call ``change``, unless the container was not found or has another name, too."""
        if self.found is not None:
            try:
                self.result = await change(self.found)
            except Exception as exc:
                self.failure = exc
        self.over.set()


async def change_each(
    ids: Iterable[str], where: Where, out: Out, change: Change, *, in_turn: bool = False
) -> int:
    """Find each container and change it; print its id, or why that failed.

    All are found first.  They are changed side by side, or one after the other if
    ``in_turn``.  The lines have the order of ``ids``, and each is printed as soon as those
    before it are.  Two names of one container count once.

    ``change`` returns what JSON and YAML show of a container besides its namespace and id;
    they show a list for several ids.  Returns the exit code: that of the last failure, 0 if
    there was none.
    """
    outcomes = await _found(list(dict.fromkeys(ids)), where)
    changed: list[object] = []
    code = 0
    broken: BrokenPipeError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_each, outcomes, change, 1 if in_turn else _AT_ONCE)
        for one in outcomes:
            await one.over.wait()
            try:
                if one.failure is not None:
                    context = click.get_current_context()
                    several = len(outcomes) > 1
                    command = context.info_name or ""
                    code = report(one.failure, command, one.name, several=several)
                elif one.found is not None:
                    changed.append(_values(one.found, one.result))
                    if out.is_table and broken is None:
                        print(printable(one.found.id), flush=True)
            except BrokenPipeError as exc:
                broken = exc  # raised when all are changed
    if broken is not None:
        raise broken
    if changed and not out.is_table:
        out.show(changed if len(outcomes) > 1 else changed[0])
    return code


def _values(found: Found, result: Mapping[str, object]) -> dict[str, object]:
    return {"namespace": found.namespace, "id": found.id, **result}


async def _found(names: Iterable[str], where: Where) -> list[_Outcome]:
    outcomes = [_Outcome(name) for name in names]
    seen: set[tuple[str, str]] = set()
    for one in outcomes:
        try:
            found = await where.find_to_change(one.name)
        except Exception as exc:
            one.failure = exc
            continue
        if (found.namespace, found.id) not in seen:
            seen.add((found.namespace, found.id))
            one.found = found
    return outcomes


async def _run_each(outcomes: Iterable[_Outcome], change: Change, at_once: int) -> None:
    limit = trio.CapacityLimiter(at_once)

    async def run(one: _Outcome) -> None:
        async with limit:
            await one.run(change)

    async with trio.open_nursery() as nursery:
        for one in outcomes:
            if at_once == 1:
                await run(one)  # a nursery starts its tasks in any order
            else:
                nursery.start_soon(run, one)
