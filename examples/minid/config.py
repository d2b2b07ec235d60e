"""minid's configuration: its values, and the strict reader of the YAML file.

Every error is one line that names the file and the key.  Relative paths are
relative to the file.  This module does no I/O except reading the file.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any, NoReturn

from minid import document
from minid.policy import KINDS, ON_FAILURE, Backoff, Restart
from shimctl import InvalidError

STATE = Path("/run/minid")
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_MAX_NAME = 60  # the shim's limit for NAME.GENERATION is 76
_MAX_STATE = 80  # bytes; a socket's path has at most 107
_SIZE = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB|)", re.ASCII)
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RESTART = re.compile(f"({'|'.join(KINDS)})|{ON_FAILURE}:([0-9]{{1,9}})", re.ASCII)
_IMAGE = re.compile(r"(oci|oci-archive|docker-archive):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """``size`` is in bytes, ``count`` includes the newest file.  None is the default file."""

    file: Path | None = None
    size: int = 10 << 20
    count: int = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit.  ``memory`` is in bytes."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """One container.  ``written`` is its part of the file, unparsed.  ``grace`` is in seconds."""

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

    def needs_new_generation(self, old: Spec) -> bool:
        """Return whether a container made for ``old`` must be replaced to match this spec.

        A change of restart, backoff, log or grace needs no new container.
        """
        ours = replace(self, restart=old.restart, backoff=old.backoff, log=old.log)
        return replace(ours, grace=old.grace) != old


@dataclass(frozen=True, slots=True)
class Settings:
    """The content of the file.  ``base`` is the file's directory."""

    base: Path
    state: Path = STATE
    namespace: str = "minid"
    containers: tuple[Spec, ...] = ()


def load(path: Path) -> Settings:
    """Read the configuration file ``path``.

    :raises InvalidError: the file cannot be read, or is invalid.
    """
    return parse(_read(path), str(path), path.resolve().parent)


def load_state(path: Path) -> Path:
    """Return the state directory of a file, even if another part of it is invalid.

    :raises InvalidError: the file cannot be read, or is not YAML.
    """
    whole = _Place(document.parse(_read(path), str(path)), str(path), path.resolve().parent)
    place = whole.table().get("state")
    return _state(place) if place else STATE


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(document.MAX_FILE + 1)
    except OSError as exc:
        raise InvalidError(f"{path}: cannot be read: {exc.strerror}") from None


def parse(data: bytes, file: str, base: Path) -> Settings:
    """Parse a file's content; relative paths are relative to ``base``.

    :raises InvalidError: a value is wrong; the line names ``file`` and the key.
    """
    whole = _Place(document.parse(data, file), file, base)
    settings = Settings(base, **whole.record(_FILE))
    _check_logs(settings, whole)
    return settings


def parse_container(name: str, written: Any, base: Path, file: str) -> Spec:
    """Parse one container's part of the file: the value of :attr:`Spec.written`.

    :raises InvalidError: as :func:`parse` does.
    """
    return _container(name, _Place(written, file, base, f"containers.{name}"))


def _container(name: str, place: _Place) -> Spec:
    place.check_name(name)
    given = place.record(_CONTAINER)
    if ("bundle" in given) == ("image" in given):
        place.fail("needs either bundle or image")
    return Spec(name, written=place.value, **given)


def _containers(place: _Place) -> tuple[Spec, ...]:
    return tuple(_container(name, one) for name, one in place.table().items())


def _state(place: _Place) -> Path:
    path = place.base / place.text()
    if len(str(path).encode()) > _MAX_STATE:
        place.fail(f"is too long for a socket in it; use at most {_MAX_STATE} bytes")
    return path


def _name(place: _Place) -> str:
    place.check_name(place.text())
    return place.text()


def _image(place: _Place) -> str:
    found = _IMAGE.fullmatch(place.text())
    if found is None:
        place.fail("is not an image; use oci:LAYOUT:TAG, oci-archive:FILE or docker-archive:FILE")
    return f"{found[1]}:{place.base / found[2]}"


def _command(place: _Place) -> tuple[str, ...]:
    words = tuple(word.text(empty=True) for word in place.items())
    if not words or not words[0]:
        place.fail("is empty; name a program")
    return words


def _environment(place: _Place) -> tuple[tuple[str, str], ...]:
    variables = place.table()
    for name, one in variables.items():
        if not name or "=" in name:
            one.fail("is not the name of a variable")
    # A number is passed on as it is written, so only whole numbers are allowed: they have
    # one form.
    return tuple(
        (name, str(one.value) if type(one.value) is int else one.text(empty=True))
        for name, one in variables.items()
    )


def _mounts(place: _Place) -> tuple[Mount, ...]:
    return tuple(Mount(**one.record(_MOUNT, "source", "target")) for one in place.items())


def _target(place: _Place) -> str:
    if not place.text().startswith("/"):
        place.fail(f"must be absolute, not {place.value!r}")
    return place.text()


def _restart(place: _Place) -> Restart:
    found = _RESTART.fullmatch(place.text())
    if found is None:
        place.fail(f"must be no, on-failure[:MAX], always or unless-stopped{place.like(KINDS)}")
    return Restart(found[1] or ON_FAILURE, int(found[2]) if found[2] else None)


def _backoff(place: _Place) -> Backoff:
    backoff = Backoff(**place.record(_BACKOFF))
    if backoff.cap < backoff.start:
        place.fail("has a cap below its start")
    return backoff


def _check_logs(settings: Settings, whole: _Place) -> None:
    owners: dict[str, str] = {}
    for spec in settings.containers:
        # Rotation renames PATH to PATH.1, so no other container may use PATH.1.
        path = re.sub(r"(\.[0-9]+)+$", "", normpath(spec.log_in(settings.state)))
        owner = owners.setdefault(path, spec.name)
        if owner != spec.name:
            place = whole.table()["containers"].table()[spec.name]
            place.fail(f"log.file is a log file of {owner}, or a rotated one; use another")


@dataclass(frozen=True, slots=True)
class _Place:
    """A value and its place in the file.

    Each method returns the value as one type, or raises InvalidError with the place.
    """

    value: Any
    file: str
    base: Path
    path: str = ""

    def fail(self, text: str) -> NoReturn:
        path = repr(self.path)[1:-1]  # repr: a path with a newline stays one line
        raise InvalidError(f"{self.file}: {path or 'the document'}: {text}")

    def table(self) -> dict[str, _Place]:
        if not isinstance(self.value, dict):
            self.fail(f"must be a table, not {self._shown()}")
        dot = f"{self.path}." if self.path else ""
        return {
            key: _Place(one, self.file, self.base, dot + key) for key, one in self.value.items()
        }

    def record(self, readers: _Readers, *needed: str) -> dict[str, Any]:
        """Return a table with each value read by the reader of its key; refuse other keys."""
        places = self.table()
        for key, one in places.items():
            if key not in readers:
                guess = _Place(key, "", self.base).like(tuple(readers))
                one.fail(f"is unknown{guess or '; use one of ' + ', '.join(readers)}")
        for key in needed:
            if key not in places:
                self.fail(f"needs a {key}")
        return {key: readers[key](one) for key, one in places.items()}

    def like(self, known: tuple[str, ...]) -> str:
        near = difflib.get_close_matches(str(self.value), known, 1)
        return f"; did you mean {near[0]}?" if near else ""

    def items(self) -> list[_Place]:
        if not isinstance(self.value, list):
            self.fail(f"must be a list, not {self._shown()}")
        return [
            _Place(one, self.file, self.base, f"{self.path}[{i}]")
            for i, one in enumerate(self.value)
        ]

    def text(self, *, empty: bool = False) -> str:
        if not isinstance(self.value, str):
            self.fail(f"must be a text, not {self._shown()}; put it in quotes")
        if not self.value and not empty:
            self.fail("must not be empty")
        return self.value

    def check_name(self, name: str) -> None:
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
            self.fail(
                f"{name[:80]!r} is not a name; use up to {_MAX_NAME} letters and digits, "
                "with single '.', '_' or '-' between them"
            )

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail(f"must be true or false, not {self._shown()}")
        return self.value

    def number(self, least: float) -> float:
        value = self.value
        if type(value) not in (int, float) or not math.isfinite(value) or value < least:
            self.fail(f"must be a number from {least:g}, not {self._shown()}")
        return float(value)

    def whole(self, least: int, most: int) -> int:
        value = self.value
        if type(value) is not int or not least <= value <= most:
            self.fail(f"must be a whole number from {least} to {most}, not {self._shown()}")
        return value

    def size(self, least: int) -> int:
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


_Readers = dict[str, Callable[[_Place], Any]]

_MOUNT: _Readers = {
    "source": lambda place: str(place.base / place.text()),
    "target": _target,
    "readonly": _Place.flag,
}
_BACKOFF: _Readers = dict.fromkeys(("start", "cap", "reset"), lambda place: place.number(0))
_LOG: _Readers = {
    "file": lambda place: place.base / place.text(),
    "size": lambda place: place.size(4096),
    "count": lambda place: place.whole(1, 1000),
}
_LIMITS: _Readers = {
    "memory": lambda place: place.size(1 << 20),
    "cpus": lambda place: place.number(0.01),
    "pids": lambda place: place.whole(1, 1 << 22),
}
_CONTAINER: _Readers = {
    "bundle": lambda place: place.base / place.text(),
    "image": _image,
    "command": _command,
    "environment": _environment,
    "mounts": _mounts,
    "stdin": lambda place: str(place.base / place.text()),
    "tty": _Place.flag,
    "restart": _restart,
    "backoff": _backoff,
    "log": lambda place: Log(**place.record(_LOG)),
    "limits": lambda place: Limits(**place.record(_LIMITS)),
    "grace": lambda place: place.number(0),
}
_FILE: _Readers = {
    "state": _state,
    "namespace": _name,
    "containers": _containers,
}
