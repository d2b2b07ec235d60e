"""The order of the measurements: every shim once, then every shim again, for as many rounds.

What disturbs the machine for a while disturbs all of them alike, so that the
ratios hold where the numbers do not.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import trio
from grpclib.exceptions import GRPCError

from shim.errors import ShimError
from tests.bench import floor
from tests.bench.caller import CallError
from tests.bench.command import CommandError
from tests.bench.samples import Samples
from tests.bench.scenarios import SCENARIOS, lifecycle
from tests.bench.workplace import open_workplace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from tests.bench.scenarios import Scenario, Sizes
    from tests.bench.workplace import Shim, Workplace

TURN = 240.0  # seconds one turn of one shim may take
# The cost of a shim that is broken, or does not support a call: its turn.
EXPECTED = (CallError, CommandError, GRPCError, ShimError, OSError, trio.TooSlowError)


async def measure(
    shims: Sequence[Shim], rounds: int, keys: set[str], sizes: Sizes, *, on_disk: bool = False
) -> Samples:
    """Run the scenarios that yield any of ``keys``; leave nothing behind."""
    samples = Samples()
    async with open_workplace(on_disk=on_disk) as place:
        for shim in shims:
            # The first start writes bytecode, and makes a fork server: the host is prepared.
            await _turn(shim.name, "warm-up", partial(lifecycle, place, shim, sizes))
        await place.wait_warm(sum(shim.forks for shim in shims))
        for scenario in SCENARIOS:
            if keys.isdisjoint(scenario.keys):
                continue
            began = time.perf_counter()
            for _ in range(-(-rounds // scenario.share)):
                await _round(place, shims, scenario, sizes, samples)
            name, seconds = scenario.run.__name__, time.perf_counter() - began
            print(f"{name}: {seconds:.0f} s", file=sys.stderr)
    return samples


async def _round(
    place: Workplace, shims: Sequence[Shim], scenario: Scenario, sizes: Sizes, samples: Samples
) -> None:
    name = scenario.run.__name__
    for shim in shims:
        turn = await _turn(shim.name, name, partial(scenario.run, place, shim, sizes))
        samples.add(shim.name, turn)
    if scenario.run is lifecycle:
        samples.add(floor.NAME, await _turn(floor.NAME, name, partial(_floor, place)))


async def _floor(place: Workplace) -> dict[str, float]:
    return floor.measure(place)


async def _turn(
    shim: str, name: str, run: Callable[[], Awaitable[dict[str, float]]]
) -> dict[str, float]:
    """Return what ``run`` measures; nothing, and a line on stderr, if it fails."""
    try:
        with trio.fail_after(TURN):
            return await run()
    except* EXPECTED as failed:
        for error in _leaves(failed):
            print(f"{name} of {shim} failed: {error or type(error).__name__}", file=sys.stderr)
    return {}


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
