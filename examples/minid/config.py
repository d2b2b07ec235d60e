"""What minid is to run: the values, and the strict way from a YAML document to them.

Every mistake is one line that names the file and the key.  Relative paths are
relative to the file.  Reading the file is all the I/O there is.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any, NoReturn

from minid import document
from minid.policy import KINDS, ON_FAILURE, Backoff, Restart
from shimctl import InvalidError

STATE = Path("/run/minid")
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_LONGEST_NAME = 60  # the shim's limit is 76, with a number behind it
_SIZE = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB|)")
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_IMAGES = ("oci", "oci-archive", "docker-archive")


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """``size`` in bytes; ``count`` files with the newest.  ``file`` None is minid's choice."""

    file: Path | None = None
    size: int = 10 << 20
    count: int = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit.  ``memory`` in bytes."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """One container.  ``written`` is what the file says, from which all the rest follows."""

    name: str
    bundle: Path | None = None
    image: str = ""
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    stdin: str = ""
    tty: bool = False
    limits: Limits = Limits()
    restart: Restart = field(default_factory=Restart)
    backoff: Backoff = field(default_factory=Backoff)
    log: Log = Log()
    grace: float = 10.0
    written: dict[str, Any] = field(default_factory=dict, compare=False)

    def log_in(self, state: Path) -> Path:
        return self.log.file or state / "logs" / f"{self.name}.log"

    def needs_another(self, old: Spec) -> bool:
        """Whether a container made for ``old`` is not one for this; the rest just changes."""
        ours = replace(self, restart=old.restart, backoff=old.backoff, log=old.log)
        return replace(ours, grace=old.grace) != old


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file.  ``base`` is the directory it is in."""

    base: Path
    state: Path = STATE
    namespace: str = "minid"
    runtime: str = "io.containerd.trio.v2"
    containers: tuple[Spec, ...] = ()


def load(path: Path) -> Settings:
    """:raises InvalidError: it cannot be read, or says something that cannot be done."""
    try:
        with open(path, "rb") as file:
            data = file.read(document.LONGEST + 1)
    except OSError as exc:
        raise InvalidError(f"{path}: cannot be read: {exc.strerror}") from None
    return parse(data, str(path), path.resolve().parent)


def parse(data: bytes, file: str, base: Path) -> Settings:
    """Parse a file's content; relative paths are relative to ``base``.

    :raises InvalidError: the one line that says what to change in ``file``.
    """
    known = ("state", "namespace", "runtime", "containers")
    top = _Place(document.parse(data, file), file, "").table(*known)
    containers = top["containers"].table() if "containers" in top else {}
    specs = tuple(_container(name, place, base) for name, place in containers.items())
    settings = Settings(base, containers=specs)
    if "state" in top:
        settings = replace(settings, state=base / top["state"].text())
    if len(str(settings.state)) > 80:
        top["state"].fail("is too long for a socket in it; use at most 80 characters")
    if "namespace" in top:
        settings = replace(settings, namespace=top["namespace"].name())
    if "runtime" in top:
        settings = replace(settings, runtime=top["runtime"].text())
    _check_logs(settings, containers)
    return settings


def parse_container(name: str, written: Any, base: Path, file: str) -> Spec:
    """Parse one container's part, as :attr:`Spec.written` has it.

    :raises InvalidError: as :func:`parse` does.
    """
    return _container(name, _Place(written, file, f"containers.{name}"), base)


def _container(name: str, place: _Place, base: Path) -> Spec:
    place.check_name(name)
    keys = place.table(
        *("bundle", "image", "command", "environment", "mounts", "stdin", "tty"),
        *("restart", "backoff", "log", "limits", "grace"),
    )
    if ("bundle" in keys) == ("image" in keys):
        place.fail("needs one of bundle and image, and not both")
    given = {key: _READERS[key](one, base) for key, one in keys.items()}
    return Spec(name, written=place.value, **given)


def _image(place: _Place, base: Path) -> str:
    kind, _, rest = place.text().partition(":")
    if kind not in _IMAGES or not rest:
        place.fail("is no image; say oci:LAYOUT:TAG, oci-archive:FILE or docker-archive:FILE")
    return f"{kind}:{base / rest}"


def _command(place: _Place, _base: Path) -> tuple[str, ...]:
    words = tuple(word.text() for word in place.items())
    return words or place.fail("is empty; name a program")


def _environment(place: _Place, _base: Path) -> tuple[tuple[str, str], ...]:
    variables = place.table().items()
    for name, value in variables:
        if not name or "=" in name or "\0" in name:
            value.fail("is no name of a variable")
    return tuple((name, value.text(numbers=True)) for name, value in variables)


def _mounts(place: _Place, base: Path) -> tuple[Mount, ...]:
    found = []
    for one in place.items():
        keys = one.table("source", "target", "readonly")
        for needed in ("source", "target"):
            if needed not in keys:
                one.fail(f"needs a {needed}")
        target = keys["target"].text()
        if not target.startswith("/"):
            keys["target"].fail(f"must be absolute, not {target!r}")
        readonly = keys["readonly"].flag() if "readonly" in keys else False
        found.append(Mount(str(base / keys["source"].text()), target, readonly))
    return tuple(found)


def _restart(place: _Place, _base: Path) -> Restart:
    if place.value is False:  # how YAML 1.1 reads a plain ``no``
        return Restart()
    kind, colon, most = place.text().partition(":")
    if kind not in KINDS or (colon and (kind != ON_FAILURE or not most.isdecimal())):
        place.fail(f"must be no, on-failure[:MAX], always or unless-stopped{place.like(KINDS)}")
    return Restart(kind, int(most) if most else None)


def _backoff(place: _Place, _base: Path) -> Backoff:
    keys = place.table("start", "cap", "reset")
    backoff = Backoff(**{name: one.number(least=0.0) for name, one in keys.items()})
    if backoff.cap < backoff.start:
        place.fail("has a cap below its start")
    return backoff


def _log(place: _Place, base: Path) -> Log:
    keys = place.table("file", "size", "count")
    log = Log()
    if "file" in keys:
        log = replace(log, file=base / keys["file"].text())
    if "size" in keys:
        log = replace(log, size=keys["size"].size(least=4096))
    if "count" in keys:
        log = replace(log, count=keys["count"].whole(least=1, most=1000))
    return log


def _limits(place: _Place, _base: Path) -> Limits:
    keys = place.table("memory", "cpus", "pids")
    return Limits(
        memory=keys["memory"].size(least=1 << 20) if "memory" in keys else None,
        cpus=keys["cpus"].number(least=0.01) if "cpus" in keys else None,
        pids=keys["pids"].whole(least=1, most=1 << 22) if "pids" in keys else None,
    )


_READERS: dict[str, Any] = {
    "bundle": lambda place, base: base / place.text(),
    "image": _image,
    "command": _command,
    "environment": _environment,
    "mounts": _mounts,
    "stdin": lambda place, base: str(base / place.text()),
    "tty": lambda place, _: place.flag(),
    "restart": _restart,
    "backoff": _backoff,
    "log": _log,
    "limits": _limits,
    "grace": lambda place, _: place.number(least=0.0),
}


def _check_logs(settings: Settings, places: dict[str, _Place]) -> None:
    owners: dict[str, str] = {}
    for spec in settings.containers:
        # PATH.1 is what becomes of PATH, so it is nobody else's either.
        path = re.sub(r"(\.[0-9]+)+$", "", normpath(spec.log_in(settings.state)))
        owner = owners.setdefault(path, spec.name)
        if owner != spec.name:
            places[spec.name].fail(f"log.file is, or comes to be, {owner}'s; name another")


@dataclass(frozen=True, slots=True)
class _Place:
    """A value and where it is.  Each method returns it as one kind of thing, or fails."""

    value: Any
    file: str
    path: str

    def fail(self, text: str) -> NoReturn:
        raise InvalidError(f"{self.file}: {self.path or 'the document'}: {text}")

    def table(self, *known: str) -> dict[str, _Place]:
        """``known`` are the only keys there may be; without any, all are."""
        if not isinstance(self.value, dict):
            self.fail(f"must be a table, not {self._shown()}")
        dot = f"{self.path}." if self.path else ""
        found = {key: _Place(one, self.file, dot + key) for key, one in self.value.items()}
        for key, one in found.items():
            if known and key not in known:
                guess = _Place(key, "", "").like(known)
                one.fail(f"is not known{guess or '; there is ' + ', '.join(known)}")
        return found

    def like(self, known: tuple[str, ...]) -> str:
        near = difflib.get_close_matches(str(self.value), known, 1)
        return f"; did you mean {near[0]}?" if near else ""

    def items(self) -> list[_Place]:
        if not isinstance(self.value, list):
            self.fail(f"must be a list, not {self._shown()}")
        return [_Place(one, self.file, f"{self.path}[{i}]") for i, one in enumerate(self.value)]

    def text(self, *, numbers: bool = False) -> str:
        """``numbers`` may be written without quotes, whole ones."""
        if numbers and type(self.value) is int:
            return str(self.value)
        if not isinstance(self.value, str):
            self.fail(f"must be a text, not {self._shown()}; put it in quotes")
        if "\0" in self.value or (not self.value and not numbers):
            self.fail("must not be empty" if not self.value else "has a NUL in it")
        return self.value

    def name(self) -> str:
        self.check_name(self.text())
        return str(self.value)

    def check_name(self, name: str) -> None:
        if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
            self.fail(
                f"{name[:80]!r} is no name; use up to {_LONGEST_NAME} letters and digits, "
                "with single '.', '_' or '-' between them"
            )

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail(f"must be true or false, not {self._shown()}")
        return self.value

    def number(self, *, least: float) -> float:
        value = self.value
        if type(value) not in (int, float) or not math.isfinite(value) or value < least:
            self.fail(f"must be a number from {least:g}, not {self._shown()}")
        return float(value)

    def whole(self, *, least: int, most: int) -> int:
        value = self.value
        if type(value) is not int or not least <= value <= most:
            self.fail(f"must be a whole number from {least} to {most}, not {self._shown()}")
        return value

    def size(self, *, least: int) -> int:
        size = -1
        if type(self.value) is int:
            size = self.value
        elif isinstance(self.value, str) and (match := _SIZE.fullmatch(self.value.strip())):
            size = int(match[1]) * _UNITS[match[2]]
        if not least <= size < 1 << 60:
            self.fail(f"must be a size from {least}, such as 65536 or 64MiB, not {self._shown()}")
        return size

    def _shown(self) -> str:
        return repr(self.value)[:60]
