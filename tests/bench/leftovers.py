"""What a run of the benchmark has on the machine, to compare before and after."""

from __future__ import annotations

from pathlib import Path

from tests.bench import procs


def leftovers() -> set[str]:
    """Return the directories and cgroups of all runs, and the pids of their processes."""
    cgroups = Path("/sys/fs/cgroup")
    found = {*Path("/run").glob("tsb-*"), *cgroups.glob("tsb-*"), *cgroups.glob("*/tsb-*")}
    return {str(path) for path in found} | {
        str(pid) for pid in procs.mentioning("/run/tsb-", environ=True)
    }
