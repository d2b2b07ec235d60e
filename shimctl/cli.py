"""The command line of shimctl: what can be said, and what exit codes mean.

Only argparse is imported here, so that ``--help`` is quick; the commands are in
:mod:`shimctl.commands`.  Exit codes: the process's own from ``wait``, ``exec``
and ``run``; 125 for a failure of ours, 126 and 127 as a shell has them for a
command that cannot be run or is not there; 128 + signal when called off.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

# What runtimes say when the command cannot be run.  Source: Go's os/exec and
# syscall messages as runc passes them on; crun container.c and libcrun/utils.c.
_SAYINGS = (
    (NOT_FOUND, ("executable file not found in $path", "executable file `")),
    (NOT_EXECUTABLE, ("permission denied", "is a directory", "exec format error")),
    (NOT_FOUND, ("no such file or directory",)),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(FAILED)


def parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    top = _Parser(
        prog="shimctl",
        description="Drive the containerd shims of this host, whoever wrote them.",
        epilog="`shimctl COMMAND --help` shows an example of each.",
    )
    top.add_argument("--version", action="version", version=f"shimctl {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_plain(name: str, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n{more}".strip(),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
        return sub

    def add(name: str, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
        sub = add_plain(name, text, example, more)
        sub.add_argument("-n", "--namespace", default="", help="look only there (default: any)")
        sub.add_argument(
            "--state",
            metavar="DIR",
            action="append",
            default=[],
            help="another state directory of containerd to look in; may be repeated",
        )
        return sub

    def add_for_one(name: str, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
        sub = add(name, text, example, more)
        sub.add_argument("id", metavar="ID", help="the container's id, or enough of its beginning")
        return sub

    add("ps", "list shims and their containers", "shimctl ps --json")
    add_for_one("state", "show the state of a container", "shimctl state redis")
    add_for_one("start", "start a container that was created", "shimctl start redis")
    kill = add_for_one("kill", "send a signal to a container", "shimctl kill redis HUP")
    kill.add_argument("signal", metavar="SIGNAL", nargs="?", default="TERM", help="default: TERM")
    kill.add_argument("-a", "--all", action="store_true", help="to every process in it")
    add_for_one(
        "wait", "wait for a container to end", "shimctl wait redis; echo $?", "Exits as it did."
    )
    _exec(
        add_for_one(
            "exec",
            "run a command in a container",
            "shimctl exec -it redis sh",
            "Exits as the command did.",
        )
    )
    delete = add_for_one(
        "delete",
        "delete a container that has ended",
        "shimctl delete redis",
        "Its shim goes too, and what `shimctl run` made for it.",
    )
    delete.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")
    add_for_one("pids", "list the processes of a container", "shimctl pids redis")
    stats = add("stats", "show what containers use", "shimctl stats redis")
    stats.add_argument("id", metavar="ID", nargs="*", help="default: every container")
    add_for_one("pause", "freeze a container", "shimctl pause redis")
    add_for_one("resume", "thaw a paused container", "shimctl resume redis")
    add(
        "events",
        "print the events of containers that `shimctl run` started",
        "shimctl events --json | tee events.log",
        "Runs until interrupted.  Shims that keep their events send those from before, too.\n"
        "The shims of containerd send their events to containerd: see `ctr events`.",
    )
    _run(
        add(
            "run",
            "run an OCI bundle without a container manager",
            "shimctl run --runtime io.containerd.runc.v2 ./bundle",
            "Exits as the container did; the third Ctrl-C kills it.  The bundle is left alone.",
        )
    )
    _forkserver(
        add_plain(
            "forkserver",
            "show, stop or start the warm parents of this host's trio shims",
            "shimctl forkserver status",
            "Each forks the shims of one kind of caller: same build, user, namespaces, cgroup.\n"
            "The first shim leaves one behind, so `warm` only spares the first one its wait.",
        )
    )
    _install(
        add_plain(
            "install",
            "put the shim where containerd finds it, with the fastest launcher there is",
            "shimctl install --prefix /usr/local",
            "The programs run this very interpreter, without site and the environment's say.\n"
            "Install again after an upgrade of Python, or of the shim.",
        )
    )
    return top


def _forkserver(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "action",
        choices=("status", "stop", "warm"),
        help="list them; end them, their shims stay; leave one for callers like us",
    )
    sub.add_argument(
        "--like",
        metavar="PID",
        type=int,
        default=0,
        help="with warm: for callers in the cgroup of this process, say containerd",
    )


def _install(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--prefix", default="/usr/local", metavar="DIR", help="default: /usr/local")
    sub.add_argument(
        "--name",
        default="containerd-shim-trio-v2",
        help="of the shim's executable (default: containerd-shim-trio-v2)",
    )
    sub.add_argument(
        "--native",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="build the native launcher, or do not (default: where there is a C compiler)",
    )
    sub.add_argument("--uninstall", action="store_true", help="remove what was installed")


def _exec(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-i", "--interactive", action="store_true", help="give it our stdin")
    sub.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    sub.add_argument("--cwd", default="", metavar="DIR", help="its working directory")
    sub.add_argument("--user", default="", metavar="UID[:GID]", help="who it runs as")
    sub.add_argument(
        "-e",
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a variable; may be repeated",
    )
    sub.add_argument("args", metavar="COMMAND", nargs=argparse.REMAINDER)


def _run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("bundle", metavar="BUNDLE", help="a directory with a config.json")
    sub.add_argument("--id", default="", help="the container's id (default: made up)")
    sub.add_argument("--runtime", default="", help="name or path (default: io.containerd.trio.v2)")
    sub.add_argument("-d", "--detach", action="store_true", help="leave it running, print its id")
    sub.add_argument("--log", metavar="FILE", help="with -d: where its output goes, if anywhere")
    sub.add_argument("--events", action="store_true", help="print its events to stderr, as JSON")
    sub.add_argument("--debug", action="store_true", help="print the shim's log to stderr")


def exit_code_for(message: str) -> int:
    """Return the exit code for a command that the runtime could not run."""
    lowered = message.lower()
    if "exec" in lowered:
        for code, sayings in _SAYINGS:
            if any(saying in lowered for saying in sayings):
                return code
    return FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    args = parser().parse_args(argv)
    # Late, because trio and protobuf take as long as everything else together.
    from shimctl import commands

    return commands.run(args)
