"""The state of a container as one plain value: JSON with a version.

A replacement of a killed daemon builds the container from it, see ``restoring``.  Fds are not
part of it: :mod:`shim.recovery.inherited` has their names.  This module is pure.

Source: none; this project defines the format.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from shim.container.lifecycle import State
from shim.errors import InvalidError
from shim.exit import Exit
from shim.recovery.versions import CONTAINER, require_readable

# Encodes text faster than json.dumps().
_quoted = json.JSONEncoder().encode


class Fixed(dict[str, Any]):
    """A JSON object that does not change, so that its text is made only once."""

    __slots__ = ("_text",)

    @property
    def text(self) -> str:
        try:
            return self._text
        except AttributeError:
            self._text: str = _quoted(self)
            return self._text


# These two are named tuples, since many are made, and a frozen dataclass takes five times as long.
class ProcessSnapshot(NamedTuple):
    """One process.  ``id`` is the exec's id, empty for the init process.

    ``doing`` is the operation under way, a method of the Task API, or empty.  ``spec`` are the
    fields of a :class:`~shim.stdio.streams.StdioSpec`.  ``stdio`` is the state of its streams
    as of :meth:`shim.stdio.streams.Stdio.state`, None before they are relayed and after they
    are closed.
    """

    id: str
    spec: dict[str, Any]
    state: State = State.CREATED
    doing: str = ""
    pid: int = 0
    exit: Exit | None = None
    stdin_closed: bool = False
    stdio: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Constants:
    """The fixed values of a Create request, and config.json and the options as they were then."""

    request: bytes
    config: dict[str, Any]
    options: dict[str, Any]


class ContainerSnapshot(NamedTuple):
    """One container.

    ``doing`` is the operation under way on the container as a whole: ``Create``, ``Pause``,
    ``Resume`` or empty.  ``pending`` is a serialized event that may or may not be in the
    journal already.  ``deleted`` are the exits of the execs that were deleted last, by exec id.
    ``cgroup`` is as :attr:`~shim.container.cgroup.ContainerCgroup.directories`, ``oom`` the pair
    of a :class:`~shim.cgroup.oom.OomCount`, None while OOM kills are not watched.
    ``existed`` are the cgroups of this name that were there before the runtime's create, None
    before that.  ``constants`` are None only in a snapshot to encode.
    """

    init: ProcessSnapshot
    execs: tuple[ProcessSnapshot, ...] = ()
    doing: str = ""
    pending: bytes = b""
    deleted: dict[str, Exit] = {}  # noqa: RUF012 - not changed
    cgroup: dict[str, str] = {}  # noqa: RUF012 - not changed
    oom: tuple[dict[str, int], int] | None = None
    existed: tuple[str, ...] | None = None
    constants: Constants | None = None


class Encoder:
    """Encodes the snapshots of one container with ``constants``.

    A state is written several times in each call, while the processor's caches have the code of
    the runtime.  So parts of the text that are as in the last snapshot are not made again:
    ``deleted`` and ``cgroup`` of a snapshot may not change any more, and ``execs`` have
    different ids.
    """

    def __init__(self, constants: Constants) -> None:
        value = {
            "request": _text(constants.request),
            "config": constants.config,
            "options": constants.options,
        }
        self._constants = _quoted(value)
        self._processes: dict[str, tuple[ProcessSnapshot, str]] = {}
        self._rest: tuple[object, ...] = ()
        self._end = b""

    def encode(self, snapshot: ContainerSnapshot) -> bytes:
        """Return the JSON."""
        init, execs = snapshot.init, snapshot.execs
        text = (
            f'{{"version": {CONTAINER}, "init": {self._process_text(init)}, '
            f'"execs": [{", ".join(map(self._process_text, execs)) if execs else ""}], '
            f'"doing": "{snapshot.doing}", "pending": "{_text(snapshot.pending)}", '
        )
        if len(self._processes) > len(execs) + 1:
            ids = {init.id, *(one.id for one in execs)}
            self._processes = {id_: self._processes[id_] for id_ in ids}
        rest = snapshot.deleted, snapshot.cgroup, snapshot.oom, snapshot.existed
        if rest != self._rest:
            self._rest = rest
            deleted = ", ".join(
                [f"{_quoted(id_)}: {_exit_text(exit_)}" for id_, exit_ in snapshot.deleted.items()]
            )
            self._end = (
                f'"deleted": {{{deleted}}}, "cgroup": {_object_text(snapshot.cgroup)}, '
                f'"oom": {_oom_text(snapshot.oom)}, "existed": {_texts_text(snapshot.existed)}, '
                f'"constants": {self._constants}}}'
            ).encode()
        return text.encode() + self._end

    def _process_text(self, process: ProcessSnapshot) -> str:
        known = self._processes.get(process.id)
        if known is None or known[0] != process:
            known = self._processes[process.id] = process, _process_text(process)
        return known[1]


def parse(data: bytes) -> ContainerSnapshot:
    """Decode the JSON of a snapshot.

    :raises InvalidError: it is not one, or one of another version.
    """
    try:
        value = json.loads(data)
        require_readable("container", value["version"])
        constants = value["constants"]
        return ContainerSnapshot(
            constants=Constants(
                base64.b64decode(constants["request"]), constants["config"], constants["options"]
            ),
            init=_process(value["init"]),
            execs=tuple(_process(one) for one in value["execs"]),
            doing=value["doing"],
            pending=base64.b64decode(value["pending"]),
            deleted={id_: Exit(**exit_) for id_, exit_ in value["deleted"].items()},
            cgroup=value["cgroup"],
            oom=tuple(value["oom"]) if value["oom"] is not None else None,
            existed=tuple(value["existed"]) if value["existed"] is not None else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InvalidError(f"cannot restore a container: its state is not valid: {exc}") from None


def _process_text(process: ProcessSnapshot) -> str:
    return (
        f'{{"id": {_quoted(process.id)}, "spec": {_object_text(process.spec)}, '
        f'"state": "{process.state.value}", "doing": {_quoted(process.doing)}, '
        f'"pid": {process.pid}, "exit": {_exit_text(process.exit)}, '
        f'"stdin_closed": {"true" if process.stdin_closed else "false"}, '
        f'"stdio": {_object_text(process.stdio)}}}'
    )


def _object_text(value: dict[str, Any] | None) -> str:
    if value is None:
        return "null"
    return value.text if isinstance(value, Fixed) else _quoted(value)


def _oom_text(oom: tuple[dict[str, int], int] | None) -> str:
    if oom is None:
        return "null"
    last = ", ".join([f"{_quoted(name)}: {count}" for name, count in oom[0].items()])
    return f"[{{{last}}}, {oom[1]}]"


def _texts_text(texts: tuple[str, ...] | None) -> str:
    return "null" if texts is None else f"[{', '.join(map(_quoted, texts))}]"


def _exit_text(exit_: Exit | None) -> str:
    if exit_ is None:
        return "null"
    return (
        f'{{"pid": {exit_.pid}, "exit_status": {exit_.exit_status}, '
        f'"exited_at": {exit_.exited_at}, "reason": {_quoted(exit_.reason)}}}'
    )


def _process(value: dict[str, Any]) -> ProcessSnapshot:
    exit_ = value["exit"]
    return ProcessSnapshot(
        **value
        | {"state": State(value["state"]), "exit": Exit(**exit_) if exit_ is not None else None}
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
