"""minid killed at many moments: no container notices, and all of it is accounted for.

The containers themselves write the facts into their directories; minid's reports have to be the
same.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.waiting import wait_until
from tests.loops import turns

if TYPE_CHECKING:
    from tests.minid.manager import Manager

pytestmark = pytest.mark.e2e

ROUNDS = turns(20, 50)
COUNTERS, ENDERS, RETURNERS = 7, 7, 6
ENOUGH = 6  # lives of a returner

# Counts without end, and waits between two numbers without a process for it.
COUNT = (
    "mkfifo /data/never; exec 3<>/data/never; i=0;"
    " while :; do echo $i; i=$((i+1)); read -t 0.02 x <&3; done"
)
# Lives once: writes a thousand lines at once, and exits after its time.
END = "sleep {wait}; seq 1 1000; echo {code} >> /data/codes; exit {code}"
# Comes back: one more code each time, written to the directory before the exit.
RETURN = (
    "n=$(cat /data/n); echo $((n+1)) > /data/n; seq 1 200 | sed s/^/$n./; usleep {wait};"
    " code=$((n % 5 + 1)); echo $code >> /data/codes; exit $code"
)


def started_at(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def describe(manager: Manager, chance: random.Random) -> dict[str, dict[str, Any]]:
    """Return twenty containers; every log keeps all that is written."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, script: str, **more: Any) -> None:
        data = manager.root / "data" / name
        data.mkdir(parents=True)
        (data / "n").write_text("0\n")
        found[name] = {
            "command": ["sh", "-c", script],
            "mounts": [{"source": str(data), "target": "/data"}],
            "log": {"size": "8KiB", "count": 1000},
            "grace": 0.1,
        } | more

    for i in range(COUNTERS):
        add(f"count{i}", COUNT, restart="unless-stopped")
    for i in range(ENDERS):
        add(f"end{i}", END.format(wait=turns(2 + i * 2, 5 + i * 4), code=chance.randrange(256)))
    for i in range(RETURNERS):
        script = RETURN.format(wait=chance.randrange(500_000, turns(3_000_000, 4_000_000)))
        policy = ("always", "unless-stopped", "on-failure")[i % 3]
        add(f"return{i}", script, restart=policy, backoff={"start": 0.1, "cap": 0.5})
    return found


def test_a_manager_killed_many_times_loses_nothing_and_disturbs_nobody(manager: Manager) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it when this fails
    chance = random.Random(seed)
    manager.write(**describe(manager, chance))
    counters = [f"count{i}" for i in range(COUNTERS)]
    manager.start()
    first = manager.wait_for(
        "the counters run", lambda ps: all(ps[one]["status"] == "running" for one in counters), 60
    )
    pids = {one: first[one]["pid"] for one in counters}
    since = {one: started_at(pid) for one, pid in pids.items()}

    for _ in range(ROUNDS):
        time.sleep(chance.uniform(0, 1.2))
        manager.end(signal.SIGKILL)
        time.sleep(chance.choice((0, chance.uniform(0, 0.6))))
        manager.start()

    enders = [f"end{i}" for i in range(ENDERS)]
    found = manager.wait_for(
        "each ender has ended, and the counters are known to run",
        lambda ps: (
            all(ps[one]["status"] == "exited" for one in enders)
            and all(ps[one]["status"] == "running" for one in counters)
        ),
        90,
    )
    returners = [f"return{i}" for i in range(RETURNERS)]
    wait_until(
        "each returner has come back often enough to show anything",
        lambda: all(len(manager.exits(one)) > ENOUGH for one in returners),
        timeout=90,
    )
    assert {one: found[one]["pid"] for one in counters} == pids
    assert {one: started_at(pids[one]) for one in counters} == since
    manager.ask("down")
    manager.wait_nothing_left()

    for one in counters:
        numbers = [int(line) for line in manager.output(one).split("\n")[:-1]]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 100
        assert manager.codes(one) == [137]
    for one in enders:
        assert manager.output(one) == "".join(f"{n}\n" for n in range(1, 1001))
        assert manager.codes(one) == truth(manager, one)
    for one in returners:
        check_returner(manager, one)
    said = [(one["container"], one["generation"]) for one in manager.exits()]
    assert len(said) == len(set(said))


def truth(manager: Manager, name: str) -> list[int]:
    path = manager.root / "data" / name / "codes"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def check_returner(manager: Manager, name: str) -> None:
    """Each life has its line, in order, with its own code; the last one was cut short."""
    exits = manager.exits(name)
    assert [one["generation"] for one in exits] == list(range(1, len(exits) + 1))
    codes, true = [one["code"] for one in exits], truth(manager, name)
    # By SIGKILL, before it began, or as runc's init still: a Go program that is pid 1
    # ends with 2 for a SIGTERM.
    cut = codes[-1] in (137, None) or (codes[-1] == 2 and len(true) < len(codes))
    whole = len(codes) - cut
    assert codes[:whole] == true[:whole]
    assert len(true) - whole in (0, 1)
    assert whole >= ENOUGH
    lines = manager.output(name).split("\n")[:-1]
    expected = [f"{life}.{n}" for life in range(whole) for n in range(1, 201)]
    assert lines[: len(expected)] == expected
    rest = lines[len(expected) :]
    assert rest == [f"{whole}.{n}" for n in range(1, len(rest) + 1)]
