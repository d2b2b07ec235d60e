"""Measure the changes that the tests of a module detect: ``python -m tests.tools.mutate``.

Each mutant (:mod:`tests.tools.mutants`) is written into a copy of the working tree, and
the given tests run there until the first failure, in namespaces of their own.  The
checkout is never written to.  A mutant that no test notices survives and is shown with
its diff; one that makes the tests run for too long has been noticed, and is counted
apart.

``tests/tools/equivalent.txt`` lists mutants that no test can notice, by their keys.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tests.tools.mutants import Mutant, keys, mutants_of

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).parent / "equivalent.txt"
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
# Exit statuses of pytest: a test failed; none was found or the collection broke, as when
# the mutant cannot be imported.  Any other but 0 is a fault of the run.
_NOTICED = {1, 2}


@dataclass(frozen=True, slots=True)
class Run:
    """The result of the tests: pytest's exit status, None if they took too long."""

    status: int | None
    seconds: float
    output: str


def copy_tree(root: Path, target: Path) -> None:
    """Copy the files of ``root`` that git tracks, and new ones that it does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, names)):
        if (source := root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def run_tests(tree: Path, tests: Sequence[str], seconds: float) -> Run:
    """Run ``tests`` in ``tree`` until one fails, for at most so many seconds."""
    worker = [str(ROOT / "tests/worker")] if os.geteuid() == 0 else []
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    begun = time.monotonic()
    with subprocess.Popen(
        [*worker, sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            status = None
    return Run(status, time.monotonic() - begun, said.decode(errors="replace"))


def try_mutant(
    tree: Path, module: str, source: str, mutant: Mutant, tests: Sequence[str], seconds: float
) -> str:
    """Return the tests' result for ``mutant``; the module in ``tree`` is restored."""
    path = tree / module
    path.write_text(mutant.apply(source))
    try:
        run = run_tests(tree, tests, seconds)
    finally:
        path.write_text(source)
    if run.status is None:
        return TIMEOUT
    if run.status == 0:
        return SURVIVED
    if run.status in _NOTICED:
        return KILLED
    raise RuntimeError(f"pytest ended with {run.status}:\n{run.output}")


def choose(found: Sequence[Mutant], sample: int, seed: int) -> list[Mutant]:
    """Return ``sample`` of the mutants, all of them if it is 0; the same for a seed."""
    if not sample or sample >= len(found):
        return list(found)
    chosen = random.Random(seed).sample(range(len(found)), sample)
    return [found[place] for place in sorted(chosen)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants; return 1 if one survives that is not listed as equivalent."""
    args = _parse(arguments)
    module = str(Path(args.module).resolve().relative_to(args.root))
    source = (args.root / module).read_text()
    known = dict(keys(args.equivalent.read_text())) if args.equivalent.exists() else {}
    every = mutants_of(source, module)
    if args.list:
        for mutant in every:
            print(f"{mutant.key} {module}:{mutant.line} {mutant.operator}")
        return 0
    wanted = [one for one in every if one.key in args.key] if args.key else every
    chosen = choose([one for one in wanted if one.key not in known], args.sample, args.seed)
    print(
        f"{module}: {len(every)} mutants, {len(every) - len(wanted)} left out, "
        f"{sum(one.key in known for one in every)} equivalent, {len(chosen)} tried"
    )
    outcomes: Counter[str] = Counter()
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.jobs):
            copy_tree(args.root, tree := Path(scratch) / str(number))
            trees.put(tree)
        first = run_tests(tree, args.tests, args.timeout or 600)
        if first.status != 0:
            print(first.output)
            raise SystemExit(f"the tests fail without a mutant ({first.status})")
        seconds = args.timeout or 3 * first.seconds + 20

        def one(mutant: Mutant) -> tuple[Mutant, str]:
            tree = trees.get()
            try:
                return mutant, try_mutant(tree, module, source, mutant, args.tests, seconds)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(args.jobs) as threads:
            for mutant, outcome in threads.map(one, chosen):
                outcomes[outcome] += 1
                print(
                    f"{outcome:8} {mutant.key} {module}:{mutant.line} {mutant.operator}",
                    flush=True,
                )
                if outcome == SURVIVED:
                    survivors.append(mutant)
    for mutant in survivors:
        print(f"\n{mutant.key} survived:\n{mutant.diff(source, module)}")
    noticed = outcomes[KILLED] + outcomes[TIMEOUT]
    print(
        f"\n{module}: {noticed} of {len(chosen)} noticed "
        f"({100 * noticed / max(len(chosen), 1):.0f} %), {outcomes[TIMEOUT]} of them by a "
        f"timeout of {seconds:.0f} s; {outcomes[SURVIVED]} survived"
    )
    return 1 if survivors else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutate")
    parser.add_argument("module", help="the file to change")
    parser.add_argument("tests", nargs="+", help="files or ids of the tests that should notice")
    parser.add_argument(
        "--sample", type=int, default=0, help="try so many mutants, chosen by --seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--timeout", type=float, default=0, help="seconds for the tests of a mutant"
    )
    parser.add_argument("--key", action="append", default=[], help="try this mutant only")
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
