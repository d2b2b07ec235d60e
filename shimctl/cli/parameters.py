"""The types of parameters, and the options and arguments that commands share.

Only click and the standard library are imported here, because completion and help
import this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shimctl.cli import parse
from shimctl.cli.output import FORMATS, Out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.shell_completion import CompletionItem

    from shimctl.discover import Found

    T = TypeVar("T")
    Function = Callable[..., T]

DETACH_KEYS = "ctrl-p,ctrl-q"  # as docker's


class Parsed(click.ParamType[Any]):
    """A type that a function of :mod:`shimctl.cli.parse` parses."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default
        try:
            return self._read(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class Signal(Parsed):
    """A signal by its number or name; the value is its number."""

    def __init__(self) -> None:
        super().__init__("signal", parse.signal_number)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from signal import Signals

        from click.shell_completion import CompletionItem

        names = (number.name.removeprefix("SIG") for number in Signals)
        return [CompletionItem(name) for name in names if name.startswith(incomplete.upper())]


class Namespace(click.ParamType[str]):
    """A namespace of a container manager; completion offers those with containers."""

    name = "namespace"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = {entry.namespace for entry in _listed(ctx)}
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


class Container(click.ParamType[str]):
    """The id of a container; completion offers those of the host, each with its state."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        wanted = ctx.params.get("namespace") or ""
        given = ctx.params.get("ids") or ()
        return [
            CompletionItem(entry.id, help=f"in {entry.namespace}, {entry.state()}")
            for entry in _listed(ctx)
            if entry.id.startswith(incomplete) and wanted in ("", entry.namespace)
            if entry.id not in given
        ]


def _listed(ctx: click.Context) -> Iterator[Any]:
    from shimctl import directories

    yield from sorted(set(directories.containers(ctx.params.get("state") or ())))


SIZE = Parsed("size", parse.size)
LIMIT = Parsed("size", parse.limit)
COUNT_LIMIT = Parsed("number", parse.count_limit)
CPUS = Parsed("number", parse.cpus)
CPU_SET = Parsed("list", parse.cpu_set)
SECONDS = Parsed("seconds", parse.seconds)
GRACE = Parsed("seconds", parse.grace)
SIGNAL = Signal()
CONTAINER = Container()
FILE = click.Path()
DIRECTORY = click.Path(file_okay=False)


def integer(least: int, most: int) -> Parsed:
    """Return the type of whole numbers from ``least`` to ``most``."""
    return Parsed("number", parse.integer(least, most))


def _time(text: str) -> Any:
    from datetime import UTC, datetime

    from shim.errors import InvalidError
    from shimctl.standalone.logentries import parse_since

    try:
        return parse_since(text, datetime.now(UTC))
    except InvalidError as exc:
        raise ValueError(str(exc)) from None


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if text.isascii() and text.isdecimal():
        return int(text)
    raise ValueError(f"{text!r} is not a number of lines; use 10 or all, for example")


LINES = Parsed("number", _lines)  # None is all
TIME = Parsed("time", _time)  # a datetime in UTC: RFC 3339, or an age such as 10m


@dataclass(frozen=True, slots=True)
class Where:
    """The containers to search: those of one namespace, or of all if it is empty."""

    namespace: str
    states: tuple[str, ...]

    async def find(self, text: str) -> Found:
        """Find the container with this id, or the only one with an id that begins so.

        For commands that change nothing.
        """
        from shimctl.discover import find_shim

        return await find_shim(text, self.namespace, states=self.states)

    async def find_to_change(self, text: str) -> Found:
        """Find the container with this id, or the only one with a hexadecimal id that begins so.

        A beginning has at least six characters.  For commands that change the container.
        """
        from shimctl.discover import find_shim

        return await find_shim(text, self.namespace, states=self.states, to_change=True)


def state_option(function: Function[T]) -> Function[T]:
    """Declare ``--state``; the function gets the directories as ``state``."""
    return click.option(
        "--state",
        type=DIRECTORY,
        multiple=True,
        metavar="DIR",
        help="Search another state directory of containerd; may be repeated.",
    )(function)


def search_options(function: Function[T]) -> Function[T]:
    """Declare ``-n`` and ``--state``; the function gets them as ``where``, a :class:`Where`."""
    return _search_options(function, "-n", "--namespace")


def search_options_without_n(function: Function[T]) -> Function[T]:
    """Declare the same for a command that has ``-n`` for a number."""
    return _search_options(function, "--namespace")


def _search_options(function: Function[T], *namespace_names: str) -> Function[T]:
    @click.option(
        *namespace_names,
        type=Namespace(),
        default="",
        metavar="NAMESPACE",
        help="Search only this namespace (default: all).",
    )
    @state_option
    @wraps(function)
    def made(*args: Any, namespace: str, state: tuple[str, ...], **kwargs: Any) -> T:
        return function(*args, where=Where(namespace, state), **kwargs)

    return made


def output_options(function: Function[T]) -> Function[T]:
    """Declare ``-o`` and ``--json``; the function gets them as ``out``, an :class:`Out`."""

    @click.option(
        *("-o", "--output"),
        type=click.Choice(FORMATS),
        help="The output format (default: table); wide has more columns.",
    )
    @click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
    @wraps(function)
    def made(*args: Any, output: str | None, as_json: bool, **kwargs: Any) -> T:
        return function(*args, out=Out(_format(click.get_current_context())), **kwargs)

    return made


def format_option(function: Function[T]) -> Function[T]:
    """Declare ``--format``; the function gets its text as ``template``."""
    return click.option(
        "--format",
        "template",
        default="",
        metavar="TEMPLATE",
        help="Print each by a Go template, such as '{{.ID}}'; json is a line of JSON.",
    )(function)


def _format(ctx: click.Context | None) -> str:
    """Return the format of the innermost command with one: ``images -o json ls`` has json."""
    while ctx is not None:
        if ctx.params.get("as_json"):
            return "json"
        if found := ctx.params.get("output"):
            return str(found)
        ctx = ctx.parent
    return "table"


def detach_keys_option(function: Function[T]) -> Function[T]:
    """Declare ``--detach-keys``; the function gets their text as ``detach_keys``."""
    return click.option(
        "--detach-keys",
        default=DETACH_KEYS,
        metavar="KEYS",
        help=f"The keys that detach, such as ctrl-],q; '' for none (default: {DETACH_KEYS}).",
    )(function)


def one_id(function: Function[T]) -> Function[T]:
    """Declare the argument ID; the function gets it as ``id_``."""
    return click.argument(
        "id_", metavar="ID", type=CONTAINER, help="The container's id, or its beginning."
    )(function)


def several_ids(function: Function[T]) -> Function[T]:
    """Declare the argument ID..., at least one; the function gets them as ``ids``."""
    return click.argument(
        *("ids",),
        metavar="ID...",
        type=CONTAINER,
        nargs=-1,
        required=True,
        help="The containers' ids, or beginnings of hexadecimal ids.",
    )(function)


def stop_options(function: Function[T]) -> Function[T]:
    """Declare ``-s`` and ``-t``; the function gets them as ``signal`` and ``grace``, or None."""
    function = click.option(
        *("-t", "--time", "grace"),
        type=GRACE,
        metavar="SECONDS",
        help="The time between the signal and SIGKILL (default: the container's, or 10).",
    )(function)
    return click.option(
        *("-s", "--signal"),
        type=SIGNAL,
        metavar="SIGNAL",
        help="The first signal, by name or number (default: the container's, or TERM).",
    )(function)
