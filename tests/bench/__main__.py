"""``python -m tests.bench``: our shim and others in turns, as a table, a plot and raw values."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import trio

from tests.bench import floor, machine
from tests.bench.figures import BY_KEY
from tests.bench.plot import svg
from tests.bench.report import Report, markdown, plain
from tests.bench.scenarios import Sizes
from tests.bench.turns import measure
from tests.bench.workplace import Shim

OURS = "trio"
OTHER = "go"
GO_SHIM = "containerd-shim-runc-v2"
INTERRUPTED = 128 + signal.SIGINT


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure shims side by side.  Needs root."
    )
    parser.add_argument(
        "--shim",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help=f"another shim to measure instead of the installed {GO_SHIM}; "
        f"{OURS}=PATH says where ours is",
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of each shim (20)")
    parser.add_argument(
        "--only", metavar="FIGURE,...", default="", help=f"of: {', '.join(BY_KEY)}"
    )
    parser.add_argument(
        "--disk", action="store_true", help="bundles on the disk that /run is on, not in memory"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument("--svg", metavar="FILE", help="write a plot there")
    parser.add_argument("--json", metavar="FILE", help="write every value there")
    for size in dataclasses.fields(Sizes):
        name = size.name.replace("_", "-")
        parser.add_argument(f"--{name}", type=int, default=size.default, help=f"({size.default})")
    args = parser.parse_args(argv)
    args.keys = set(args.only.split(",")) if args.only else set(BY_KEY)
    if unknown := args.keys - set(BY_KEY):
        parser.error(
            f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(BY_KEY)}"
        )
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    try:
        args.shims = shims_of(args.shim)
    except ValueError as exc:
        parser.error(str(exc))
    return args


def shims_of(given: list[str]) -> list[Shim]:
    """Return what to measure, ours first.

    :raises ValueError: something given is not NAME=PATH, or not there.
    """
    named = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise ValueError(f"{text!r} is not NAME=PATH")
        named[name] = path
    ours = named.pop(OURS, str(Path(sys.executable).with_name("containerd-shim-trio-v2")))
    shims = [Shim(OURS, ours)]
    shims += [Shim(*pair) for pair in (named or {OTHER: f"/usr/bin/{GO_SHIM}"}).items()]
    return [Shim(shim.name, _executable(shim)) for shim in shims]


def _executable(shim: Shim) -> str:
    path = shutil.which(shim.path)
    if path is None:
        raise ValueError(f"{shim.path} is no executable; give --shim {shim.name}=PATH")
    return str(Path(path).absolute())  # each shim runs in its bundle


def main(argv: list[str]) -> int:
    args = parse(argv)
    if os.geteuid() != 0:
        print("containers need root: run me with sudo", file=sys.stderr)
        return 1
    # An end by SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sizes = Sizes(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Sizes)})
    try:
        samples = trio.run(
            partial(measure, args.shims, args.rounds, args.keys, sizes, on_disk=args.disk),
            strict_exception_groups=True,
        )
    except* KeyboardInterrupt:
        print("interrupted; everything is cleaned up", file=sys.stderr)
        sys.exit(INTERRUPTED)
    samples.keep(args.keys)
    place = "on the disk of /run" if args.disk else "in memory"
    report = Report(
        shims=[shim.name for shim in args.shims],
        floor=floor.NAME,
        samples=samples,
        sizes=dataclasses.asdict(sizes),
        date=time.strftime("%Y-%m-%d"),
        machine=[
            *machine.describe({shim.name: shim.path for shim in args.shims}),
            f"Bundles {place}",
        ],
    )
    print(plain(report), end="")
    write(report, args)
    return 0


def write(report: Report, args: argparse.Namespace) -> None:
    if args.markdown:
        Path(args.markdown).write_text(markdown(report))
    if args.svg:
        Path(args.svg).write_text(svg(report))
    if args.json:
        values = {
            "date": report.date,
            "machine": report.machine,
            "sizes": report.sizes,
            "medians": report.samples.medians(),
            "values": report.samples.values,
        }
        Path(args.json).write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
