"""The machine and the programs of a measurement."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from tests.bench.command import CommandError, spawn

LIMIT = 10.0  # seconds for a program to print its version


def describe(shims: dict[str, str]) -> list[str]:
    """Return a line on the machine and one on each program; ``shims``: name to path."""
    system = f"{_distribution()}, Linux {platform.release()}, {os.cpu_count()} x {_processor()}"
    hierarchy = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    lines = [f"{system}, cgroup {hierarchy}"]
    for name, path in shims.items():
        lines.append(f"{name}: `{Path(path).name}` {_version(path, '-v')}")
    lines.append(f"runc {_version('runc', '--version')}")
    return lines


def _version(path: str, flag: str) -> str:
    found = "of unknown version"
    with suppress(OSError, CommandError):
        done = spawn([path, flag], env=os.environ).finish(LIMIT)
        for line in done.output.decode(errors="replace").splitlines():
            key, _, value = line.strip().replace(":", " ").partition(" ")
            if key.lower() in {"version", "runc"}:
                found = value.replace("version", "").strip()
            elif key.lower() == "python":  # of our own shims
                found += f" on Python {value.strip()}"
    return found


def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
