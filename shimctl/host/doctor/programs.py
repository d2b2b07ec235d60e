"""Checks the programs that the shim, shimctl and the managers use, and their versions.

Each version is asked for with a time limit, since a runtime on a hung disk never answers.
:func:`judge` is pure.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from functools import partial

import trio

from shim import names
from shim.text import explain
from shim.version import VERSION
from shimctl.host.doctor import bounded
from shimctl.host.doctor.finding import Finding, Level

_AREA = "programs"
# The PATH of a service of systemd, beside ours.  Source: systemd.exec(5), Environment.
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A program and its use.

    ``command`` are the arguments that print the version.  ``needed`` is the feature
    that is missing without the program.  ``features`` are the versions that a feature
    needs: a lower one lacks it.
    """

    name: str
    needed: str
    command: tuple[str, ...] = ("--version",)
    features: tuple[tuple[Version, str], ...] = ()


# Sources: docs/compatibility.md, README.md and examples/README.md of this project.
PROGRAMS = (
    Program(
        "runc",
        "the default OCI runtime",
        features=(((1, 1), "features"), ((1, 2), "pods in a user namespace")),
    ),
    Program("crun", "crun as the OCI runtime", features=(((1, 9), "pods in a user namespace"),)),
    Program("criu", "checkpoint and restore", features=(((3, 17), "checkpoints of runc 1.1"),)),
    Program("skopeo", "getting images from a registry"),
    Program("umoci", "making images by hand"),
    Program(
        "containerd",
        "containerd as the manager",
        features=(((1, 6), "a tested version"), ((2, 0), "pods in a user namespace")),
    ),
    Program(
        "dockerd",
        "Docker as the manager",
        features=(((23,), "a choice of the shim by `--runtime`"),),
    ),
    Program("crio", "CRI-O as the manager"),
    Program("k3s", "k3s as the manager"),
)


def judge(program: Program, path: str, text: str, *, required: bool) -> Finding:
    """Judge the version in ``text``; an empty ``path`` is a program that is not installed."""
    made = partial(Finding, _AREA, program.name)
    if not path:
        if required:
            return made(
                Level.BROKEN,
                "neither runc nor crun is on PATH, so no container can be created",
                "install runc",
            )
        return made(Level.NOTE, f"not installed; needed for {program.needed}")
    version = version_in(text)
    if version is None:
        return made(Level.ADVICE, f"{path} prints no version", f"run `{path} --version`")
    shown = ".".join(map(str, version))
    lacks = [feature for least, feature in program.features if version < least]
    if lacks:
        return made(Level.NOTE, f"{shown} ({path}); lacks {', '.join(lacks)}")
    return made(Level.OK, f"{shown} ({path})")


def version_in(text: str) -> Version | None:
    """Return the first version number in ``text``, None if there is none.

    ``Docker version 20.10.24+dfsg1`` is (20, 10, 24).
    """
    match = re.search(r"(?<![\w.])v?(\d+(?:\.\d+)+)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


async def check() -> list[Finding]:
    """Check all programs at the same time."""
    paths = {program.name: find(program.name) for program in PROGRAMS}
    results: dict[str, Finding] = {}

    async def ask(program: Program) -> None:
        path = paths[program.name]
        required = program.name == "runc" and not paths["crun"]
        results[program.name] = await _ask(program, path, required=required)

    async with trio.open_nursery() as nursery:
        for program in PROGRAMS:
            nursery.start_soon(ask, program)
        nursery.start_soon(_check_criu, paths["criu"], results)
        nursery.start_soon(_check_shim, results)
    order = [*(program.name for program in PROGRAMS), "criu check", names.EXECUTABLE]
    return [results[name] for name in order if name in results]


def find(name: str, path: str = "") -> str:
    """Return the path of a program on ``path``, by default ours and a service's; or ''."""
    return shutil.which(name, path=path or f"{os.environ.get('PATH', '')}:{_SYSTEM}") or ""


async def _ask(program: Program, path: str, *, required: bool) -> Finding:
    if not path:
        return judge(program, "", "", required=required)
    output = await _output(program.name, [path, *program.command])
    return output if isinstance(output, Finding) else judge(program, path, output, required=False)


async def _output(subject: str, argv: list[str]) -> str | Finding:
    made = partial(Finding, _AREA, subject, Level.BROKEN)
    command = " ".join(argv)
    try:
        output = await bounded.run(argv)
    except OSError as exc:
        return made(f"cannot execute {argv[0]}: {explain(exc)}", "install it again")
    if output.exit_code is None:
        text = f"`{command}` did not end within {bounded.PROGRAM:g} s and was killed"
        return made(text, f"run `{command}` by hand; a disk may hang")
    if output.exit_code:
        last = output.text.strip().rpartition("\n")[2] or "it printed nothing"
        return made(f"`{command}` failed ({output.exit_code}): {last}", "install it again")
    return output.text


async def _check_criu(path: str, results: dict[str, Finding]) -> None:
    """Run criu's own check: its version does not show whether it works on this kernel."""
    if not path or os.geteuid():
        return
    output = await _output("criu check", [path, "check"])
    if isinstance(output, Finding):
        remedy = "install a criu that is as new as the kernel"
        text = f"checkpoints fail: {output.text}"
        results["criu check"] = Finding(_AREA, "criu check", Level.ADVICE, text, remedy)


async def _check_shim(results: dict[str, Finding]) -> None:
    name = names.EXECUTABLE
    path = find(name)
    output = await _output(name, [path, "-v"]) if path else ""
    results[name] = output if isinstance(output, Finding) else judge_shim(path, output)


def judge_shim(path: str, text: str) -> Finding:
    """Judge the shim's executable on PATH; it may be of another version than this program."""
    made = partial(Finding, _AREA, names.EXECUTABLE)
    if not path:
        return made(
            Level.ADVICE,
            "not on PATH, so no manager finds it",
            "run `shimctl install`, which writes it to /usr/local/bin",
        )
    version = version_in(text)
    shown = ".".join(map(str, version)) if version else "of an unknown version"
    if shown != VERSION:
        text = f"{path} is {shown}, and this shimctl {VERSION}"
        return made(Level.ADVICE, text, "run `shimctl install` again")
    return made(Level.OK, f"{VERSION} ({path})")
