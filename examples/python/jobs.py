"""Run ten containers side by side; print the exit status and the output of each.

    python examples/python/jobs.py oci:LAYOUT:TAG      (or the directory of a bundle)

It needs root, runc, and the shim's executable on PATH.
"""

import sys

import trio

import shimctl

AT_ONCE = 4  # containers that run at the same time
TIMEOUT = 30.0  # s for one container

JOBS = {
    f"job{number}": ["sh", "-c", f"echo working on {number}; exit $(({number} % 3))"]
    for number in range(10)
}


async def main(source: str) -> int:
    """Run all jobs; return the number of those that failed."""
    slots = trio.Semaphore(AT_ONCE)
    results: dict[str, shimctl.Finished] = {}

    async def run(name: str) -> None:
        async with slots:
            results[name] = await shimctl.run(source, JOBS[name], timeout=TIMEOUT)

    async with trio.open_nursery() as nursery:
        for name in JOBS:
            nursery.start_soon(run, name)
    for name in JOBS:
        done = results[name]
        print(f"{name}: {done.exit_status}, {done.stdout.decode().strip()}")
    return sum(done.exit_status != 0 for done in results.values())


if __name__ == "__main__":
    print("failed:", trio.run(main, sys.argv[1]))
