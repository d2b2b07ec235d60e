"""``python -m tests.bench``: our shim and others in turns, as a table, a plot and raw values."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.bench import floor, machine
from tests.bench.figures import BY_KEY
from tests.bench.plot import svg
from tests.bench.report import Report, markdown, plain
from tests.bench.scenarios import Sizes
from tests.bench.turns import measure
from tests.bench.workplace import Shim

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = "trio"
OTHER = "go"
AGAINST = "before"
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
    parser.add_argument(
        "--against", metavar="CHECKOUT", help=f"another build of ours, measured as {AGAINST}"
    )
    parser.add_argument(
        "--busy", metavar="N", type=int, default=0, help="keep N processors busy meanwhile (0)"
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
        args.shims = shims_of(args.shim, args.against)
    except ValueError as exc:
        parser.error(str(exc))
    return args


def shims_of(given: list[str], against: str | None = None) -> list[Shim]:
    """Return what to measure: ours first, the other shims, then the build ``against``.

    :raises ValueError: something given is not NAME=PATH, or not there.
    """
    named = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise ValueError(f"{text!r} is not NAME=PATH")
        named[name] = path
    ours = named.pop(OURS, str(Path(sys.executable).with_name("containerd-shim-trio-v2")))
    shims = [Shim(OURS, ours, forks=True)]
    shims += [Shim(*pair) for pair in (named or {OTHER: f"/usr/bin/{GO_SHIM}"}).items()]
    shims = [replace(shim, path=_executable(shim)) for shim in shims]
    if against is not None:
        checkout = Path(against).absolute()
        if not (checkout / "shim/start/launcher.py").is_file():
            raise ValueError(f"{against} is no checkout of this project; give its directory")
        shims.append(Shim(AGAINST, str(checkout), forks=True))
    return shims


def launcher_of(checkout: str, directory: Path) -> str:
    """Write an executable that runs the shim of ``checkout``; return its path."""
    path = directory / GO_SHIM.replace("runc", "trio")
    directory.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {checkout!r})\n"
        "from shim.start.launcher import main\nsys.exit(main())\n"
    )
    path.chmod(0o755)
    return str(path)


@contextmanager
def comparable(shims: list[Shim]) -> Iterator[list[Shim]]:
    """Yield ``shims`` with executables; two builds of ours get launchers of one kind."""
    if shims[-1].name != AGAINST:
        yield shims
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        builds = {AGAINST: shims[-1].path, OURS: str(Path(__file__).parents[2])}
        yield [
            replace(shim, path=launcher_of(builds[shim.name], Path(directory) / shim.name))
            if shim.name in builds
            else shim
            for shim in shims
        ]


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep so many processors busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def state_of_host(args: argparse.Namespace) -> str:
    """Return a line on the host's state, which decides about many figures."""
    place = "on the disk of /run" if args.disk else "in memory"
    before = os.getloadavg()[0]
    busy = f"{args.busy} busy processes" if args.busy else "no load of our own"
    return (
        f"Bundles {place}, {busy}, load {before:.1f} before; a fork server runs, "
        "except for a host's first shims"
    )


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
    host = state_of_host(args)
    try:
        with comparable(args.shims) as shims, load(args.busy):
            samples = trio.run(
                partial(measure, shims, args.rounds, args.keys, sizes, on_disk=args.disk),
                strict_exception_groups=True,
            )
            programs = machine.describe({shim.name: shim.path for shim in shims})
    except* KeyboardInterrupt:
        print("interrupted; everything is cleaned up", file=sys.stderr)
        sys.exit(INTERRUPTED)
    samples.keep(args.keys)
    report = Report(
        shims=[shim.name for shim in args.shims],
        floor=floor.NAME,
        samples=samples,
        sizes=dataclasses.asdict(sizes),
        date=time.strftime("%Y-%m-%d"),
        machine=[*programs, host],
        on_disk=args.disk,
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
