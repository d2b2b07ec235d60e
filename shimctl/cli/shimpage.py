"""The reference of the shim's executable: docs/shim.md and its man page.

    python -m shimctl.cli.shimpage PAGE           write PAGE, a Markdown file
    python -m shimctl.cli.shimpage PAGE --check   exit with 1 if it is not current

Source: man-pages(7) for the sections, containerd core/runtime/v2/README.md for the protocol.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from shim import names
from shim.version import VERSION
from shimctl.cli.generated import roff, write_or_compare

MAN = f"{names.EXECUTABLE}.8"
_SUMMARY = "containerd shim for OCI runtimes such as runc"


class Entry(NamedTuple):
    """An action, a flag, a variable, a file or a signal; ``text`` describes it."""

    name: str
    text: str


SYNOPSIS = (
    f"{names.EXECUTABLE} -namespace NS -id ID [-address SOCKET] [-debug] start",
    f"{names.EXECUTABLE} -namespace NS -id ID [-bundle DIR] delete",
    f"{names.EXECUTABLE} -info | -version | features | forkserver",
)

DESCRIPTION = (
    "A container manager runs this program: containerd, dockerd, CRI-O, nerdctl or `shimctl`. "
    "It starts a daemon, the shim, that runs the containers of one bundle or of one pod by an "
    "OCI runtime, and serves containerd's Task API, versions 2 and 3, on a Unix socket. The "
    "containers run on while the manager is stopped.",
    "The working directory is the bundle. A manager chooses the shim by the runtime type "
    f"`{names.RUNTIME}`, or by the path of the executable.",
    "`shimctl` controls and inspects running shims.",
)

ACTIONS = (
    Entry(
        "start",
        "Start a shim for the container, or find the one that serves its pod; print its address. "
        "Standard input has BootstrapParams, or the options of the runtime, or nothing.",
    ),
    Entry(
        "delete",
        "End the container of a shim that is dead, remove its remains, and print its exit "
        "status as a DeleteResponse. It returns within five seconds, also if a disk hangs; if it "
        "cannot read the bundle, the exit status is 137.",
    ),
    Entry("features", "Print the features of the OCI runtime as JSON, as CRI-O needs them."),
    Entry(
        "forkserver",
        "Run a fork server in the foreground. The first start makes one anyhow; see "
        "`shimctl forkserver`.",
    ),
)

FLAGS = (
    Entry("-namespace NS", "The namespace of the manager."),
    Entry("-id ID", "The id of the container."),
    Entry(
        "-address SOCKET",
        "The manager's own socket. CRI-O gives none; then a stop signal to an exited container "
        "succeeds.",
    ),
    Entry("-publish-binary FILE", "Accepted and not used: events are sent by ttrpc."),
    Entry("-bundle DIR", "For delete: the bundle, if it is not the working directory."),
    Entry("-socket SOCKET", "Accepted and not used: the address is computed."),
    Entry("-debug", "Log debug messages, too."),
    Entry("-info", "Print a RuntimeInfo: the version, and the features of the runtime."),
    Entry("-v, -version", "Print the version."),
)

ENVIRONMENT = (
    Entry("TTRPC_ADDRESS", "The socket to which the shim sends events; none is sent without."),
    Entry("SCHED_CORE", "With any value, the containers of the shim get a scheduling core."),
    Entry(
        names.HOST_FILE_VARIABLE,
        "The file with the host's settings, in place of /etc/trio-shim.toml.",
    ),
    Entry(
        "TRIO_SHIM_RUNTIME_TIMEOUT",
        "Seconds that one command of the OCI runtime may take (default: 120).",
    ),
    Entry("TRIO_SHIM_FORKSERVER", "`off`: each start does its work itself (default: on)."),
    Entry(
        "TRIO_SHIM_FORKSERVER_IDLE",
        "Seconds until an unused fork server exits (default: 600); 0 for never.",
    ),
    Entry("TRIO_SHIM_FORKSERVER_DIR", "The directory of the sockets of fork servers."),
    Entry(
        "TRIO_SHIM_DEATHS",
        "Deaths within a minute after which a shim with `survive = true` is not replaced any "
        "more (default: 3); 0 for no limit.",
    ),
)

FILES = (
    Entry(
        "/etc/trio-shim.toml",
        "Settings of the host: `share`, `survive` and the table `output`. An example is in the "
        "documentation's directory `examples`.",
    ),
    Entry("/run/containerd/s/HASH", "The socket of a shim."),
    Entry("BUNDLE/address", "The address of the container's shim."),
    Entry("BUNDLE/init.pid, BUNDLE/EXEC.pid", "The pid of a process, written by the runtime."),
    Entry(
        "BUNDLE/init.exit, BUNDLE/EXEC.exit",
        "The exit record of a process: JSON, written before the exit is published.",
    ),
    Entry("BUNDLE/events.journal", "Events that the manager has not acknowledged."),
    Entry("BUNDLE/log", "A fifo of the manager for the log."),
)

SIGNALS = (
    Entry(
        "SIGTERM, SIGINT", "The shim ends. Its containers run on, without exit status or output."
    ),
    Entry("SIGUSR1", "The shim writes the stack of each of its threads to its log."),
)

EXIT_STATUS = "0, or 1 after an error, which is one line on stderr."

SEE_ALSO = ("shimctl(1)", "runc(8)", "containerd(8)")

_ENTRIES = {
    "Actions": ACTIONS,
    "Flags": FLAGS,
    "Environment": ENVIRONMENT,
    "Files": FILES,
    "Signals": SIGNALS,
}
_SENTENCE = re.compile(r"(?<=[^.\s][.]) +(?=[A-Z`-])")


def markdown() -> str:
    """Return the page in Markdown."""
    lines = ["# The shim's executable", "", f"`{names.EXECUTABLE}`: {_SUMMARY}.", ""]
    lines += ["```", *SYNOPSIS, "```", ""]
    for paragraph in DESCRIPTION:
        lines += [*_SENTENCE.split(paragraph), ""]
    for title, entries in _ENTRIES.items():
        lines += [f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| `{one.name}` | {one.text} |" for one in entries]
        lines.append("")
    lines += ["The exit status is " + EXIT_STATUS, ""]
    lines.append("This page is generated: `python -m shimctl.cli.shimpage docs/shim.md`.")
    return "\n".join(lines) + "\n"


def man_page() -> str:
    """Return the man page."""
    lines = [
        f'.TH {_roff(names.EXECUTABLE.upper())} 8 "" "trio\\-shim {VERSION}"',
        *(".SH NAME", f"{_roff(names.EXECUTABLE)} \\- {_roff(_SUMMARY)}"),
        *(".SH SYNOPSIS", ".nf", *map(_roff, SYNOPSIS), ".fi", ".SH DESCRIPTION"),
    ]
    for paragraph in DESCRIPTION:
        lines += [".PP", _roff(paragraph)]
    for title, entries in _ENTRIES.items():
        lines.append(f".SH {title.upper()}")
        for one in entries:
            lines += [".TP", f".B {_roff(one.name)}", _roff(one.text)]
    lines += [".SH EXIT STATUS", _roff(EXIT_STATUS), ".SH SEE ALSO"]
    references = [one.rstrip(")").split("(") for one in SEE_ALSO]
    commas = [*[","] * (len(references) - 1), ""]
    lines += [
        f".BR {_roff(name)} ({number}){comma}"
        for (name, number), comma in zip(references, commas, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    return roff(text.replace("`", ""))


def main(argv: list[str]) -> int:
    """Write or check the page; return the exit code."""
    match argv:
        case [name] | [name, "--check"]:
            return write_or_compare(name, markdown(), "shimctl.cli.shimpage", check=len(argv) == 2)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
