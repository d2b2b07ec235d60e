"""``python -m tests.bench.scale``: what grows with the number of shims on a machine.

The shims of one population, each with a container that sleeps, are measured at each of the
given numbers.  The verdict says how each figure of all shims together grows.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from grpclib.exceptions import GRPCError

from shim.errors import ShimError
from tests.bench import command, curves, machine, procs
from tests.bench.__main__ import INTERRUPTED
from tests.bench.caller import CallError
from tests.bench.growth import Curve
from tests.bench.population import open_population
from tests.bench.report import NOTHING, number
from tests.bench.returning import return_serially, return_together
from tests.bench.scenarios import IDLE
from tests.bench.workplace import NAMESPACE, Shim, open_workplace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.bench.population import Population

MIB = 1 << 20
SPARE_MEMORY = 1024  # MiB that stay free
MARGIN = 1.5  # of the memory that more shims are expected to take, with the kernel's part
WIDTH = 100  # shims at a time
FIGURES = {
    "pss": ("PSS", "MiB"),
    "wakeups": ("wake-ups, idle", "1/s"),
    "start": ("one more `start`", "ms"),
    "serial": ("return, one at a time", "ms"),
    "together": (f"return, {WIDTH} at a time", "ms"),
    "ps": ("`shimctl ps`", "ms"),
}
# The failures of a shim that is broken, or that does not support a call.
EXPECTED = (CallError, command.CommandError, GRPCError, ShimError, OSError, trio.TooSlowError)


async def measure(population: Population, rounds: int) -> dict[str, float]:
    """Return the figures of all shims together.

    A time is the shortest of ``rounds``: other processes of the machine only lengthen it.
    """
    await population.settle()
    sessions = population.sessions
    found = {"wakeups": await population.woken(IDLE) / IDLE}
    found["pss"] = sum(map(procs.pss, population.family())) / MIB
    found["start"] = min(await population.starts(2 * rounds))
    found["serial"] = min(return_serially(sessions) for _ in range(rounds))
    found["together"] = min(return_together(sessions, WIDTH) for _ in range(rounds))
    found["ps"] = min(list_all(population) for _ in range(rounds))
    return found


def list_all(population: Population) -> float:
    """Run ``shimctl ps``; return its milliseconds.

    :raises CommandError: it does not list every container as running.
    """
    shimctl = str(Path(sys.executable).with_name("shimctl"))
    argv = [shimctl, "ps", "--namespace", NAMESPACE, "--state", str(population.place.root)]
    done = command.run(argv, env=population.place.environ)
    running = done.output.decode().count("  Up ")
    if running != (wanted := len(population.sessions)):
        raise command.CommandError(f"shimctl ps lists {running} of {wanted} containers as running")
    return done.seconds * 1000


async def measure_growth(
    shim: Shim, numbers: Sequence[int], rounds: int
) -> list[tuple[int, dict[str, float]]]:
    """Return the figures at each of ``numbers`` that the machine's memory is enough for."""
    found: list[tuple[int, dict[str, float]]] = []
    async with open_workplace() as place, open_population(place, shim) as population:
        # The first start of a host makes the fork server, and writes bytecode.
        await population.starts(1)
        for count in numbers:
            if found and (lack := missing_memory(*found[-1], count, available())):
                print(f"{shim.name}: {count} shims need {lack} MiB more memory", file=sys.stderr)
                break
            began = time.monotonic()
            await population.grow(count)
            found.append((count, await measure(population, rounds)))
            seconds = time.monotonic() - began
            print(f"{shim.name}: {count} shims, {seconds:.0f} s", file=sys.stderr)
        await population.end()
    return found


def missing_memory(reached: int, figures: dict[str, float], count: int, available: float) -> int:
    """Return the MiB that are missing for ``count`` shims, of ``available``.

    ``figures`` are those of ``reached`` shims.
    """
    wanted = figures["pss"] / reached * (count - reached) * MARGIN + SPARE_MEMORY
    return max(0, int(wanted - available))


def available() -> float:
    """Return the MiB of memory that processes can still take.  Source: proc_meminfo(5)."""
    for text in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = text.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) / 1024
    raise OSError("/proc/meminfo has no MemAvailable; this needs Linux 3.14 or newer")


def curves_of(found: Iterable[tuple[int, dict[str, float]]]) -> dict[str, Curve]:
    """Return the curve of each figure."""
    points = list(found)
    return {
        key: Curve(
            title.replace("`", ""), unit, [(count, values[key]) for count, values in points]
        )
        for key, (title, unit) in FIGURES.items()
    }


def table(shim: str, found: Sequence[tuple[int, dict[str, float]]]) -> list[str]:
    """Render a row for each figure, with a column for each number, as Markdown."""
    heads = [shim, "unit", *(str(count) for count, _ in found), "growth"]
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(found) + " --- |")
    for key, curve in curves_of(found).items():
        values = [number(round(value, 3)) for _, value in curve.points]
        cells = [FIGURES[key][0], curve.unit, *values, curve.growth() or NOTHING]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale",
        description="Measure many shims on one machine.  Needs root.",
    )
    parser.add_argument("--shims", default="10,30,100,300,1000", metavar="NUMBER,...")
    parser.add_argument("--rounds", type=int, default=5, help="of what is timed (5)")
    parser.add_argument(
        "--shim", action="append", default=[], metavar="NAME=PATH", help="(this environment's)"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    parser.add_argument("--svg", metavar="FILE", help="write a plot there")
    args = parser.parse_args(argv)
    try:
        args.numbers = sorted({int(text) for text in args.shims.split(",")})
    except ValueError:
        parser.error(f"--shims {args.shims}: give numbers, such as 10,30,100")
    if args.numbers[0] < 1 or args.rounds < 1:
        parser.error("--shims and --rounds are at least 1")
    ours = str(Path(sys.executable).with_name("containerd-shim-trio-v2"))
    if any("=" not in text for text in args.shim):
        parser.error("--shim is NAME=PATH")
    named = dict(text.split("=", 1) for text in args.shim) or {"trio": ours}
    args.named = {name: str(Path(path).absolute()) for name, path in named.items()}
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if os.geteuid() != 0:
        print("containers need root: run me with sudo", file=sys.stderr)
        return 1
    # An end by SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # four for each shim
    lines = [f"{line}." for line in machine.describe(args.named)]
    measured = {}
    try:
        for name, path in args.named.items():
            growing = partial(measure_growth, Shim(name, path), args.numbers, args.rounds)
            measured[name] = trio.run(growing, strict_exception_groups=True)
            lines += ["", *table(name, measured[name])]
    except* KeyboardInterrupt:
        print("interrupted; everything is cleaned up", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except* EXPECTED as failed:
        print(f"the measurement failed: {failed.exceptions[0]}", file=sys.stderr)
        sys.exit(1)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if args.markdown:
        Path(args.markdown).write_text(text)
    if args.svg:
        shown = {name: curves_of(found) for name, found in measured.items()}
        panels = [{name: of[key] for name, of in shown.items()} for key in FIGURES]
        head = f"Shims on one machine: {time.strftime('%Y-%m-%d')}"
        Path(args.svg).write_text(curves.svg(head, panels))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
