"""The filters of ``ps``, with docker's meaning.

Several values of one key are alternatives, except those of ``label``, which must all
match; several keys must all match.

Source: docker's reference of ``docker ps --filter``, and moby daemon/list.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.errors import InvalidError
from shim.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shimctl.listing.row import Row

_STATES = {
    "stopped": "exited",
    "not a shim": "foreign",
    **{
        word: word
        for word in ("running", "paused", "created", "exited", "dead", "silent", "foreign")
    },
    **{word: word for word in ("unknown", "restarting", "removing")},  # the last two match none
}
_ALL_OF = ("label",)  # keys whose values must all match
_SAME = {"ancestor": "image", "annotation": "label"}


class Filters:
    """Conditions on a row; without any, every row matches.

    :raises InvalidError: a text is not ``KEY=VALUE``, or the key or the value is unknown.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._wanted: dict[str, list[str]] = {}
        for text in texts:
            given, equals, value = text.partition("=")
            key = _SAME.get(given.strip().lower(), given.strip().lower())
            if not equals or key not in _MATCHES:
                raise InvalidError(
                    f"--filter {printable(text)}: use KEY=VALUE with one of the keys "
                    f"{', '.join(sorted((*_MATCHES, *_SAME)))}"
                )
            self._wanted.setdefault(key, []).append(_checked(key, value))

    @property
    def wants_finished(self) -> bool:
        """Whether a filter selects by state, so that ``ps`` implies ``--all``."""
        return "status" in self._wanted or "exited" in self._wanted

    def match(self, row: Row) -> bool:
        """Return whether ``row`` meets the conditions."""
        for key, values in self._wanted.items():
            met = (_MATCHES[key](row, value) for value in values)
            if not (all(met) if key in _ALL_OF else any(met)):
                return False
        return True


def _checked(key: str, value: str) -> str:
    if key == "status":
        if value.lower() not in _STATES:
            raise InvalidError(
                f"--filter status={printable(value)}: use one of {', '.join(sorted(_STATES))}"
            )
        return _STATES[value.lower()]
    if key == "exited" and not (value.isascii() and value.isdecimal() and len(value) < 11):
        raise InvalidError(f"--filter exited={printable(value)}: use an exit status, such as 137")
    if key == "name" and set(value.replace(".*", "")) & set("*+?()[]{}|\\"):
        raise InvalidError(
            f"--filter name={printable(value)}: use a part of the name; "
            "^ and $ are its begin and end, and .* is any text"
        )
    return value


def _id(row: Row, value: str) -> bool:
    return row.found.id.startswith(value)


def _name(row: Row, value: str) -> bool:
    return any(_contains(name, value) for name in (row.name, f"/{row.name}", row.found.id))


def _contains(text: str, pattern: str) -> bool:
    """Return whether ``pattern`` occurs in ``text``; see :func:`_checked` for its signs.

    Unlike a regular expression of Python it never takes exponential time.
    """
    parts = pattern.removeprefix("^").removesuffix("$").split(".*")
    # Now the parts are those of a pattern that matches from the begin to the end.
    parts = parts if pattern.startswith("^") else ["", *parts]
    parts = parts if pattern.endswith("$") else [*parts, ""]
    if len(parts) == 1:
        return text == parts[0]
    first, *middle, last = parts
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _label(row: Row, value: str) -> bool:
    key, equals, wanted = value.partition("=")
    found = row.origin.labels.get(key)
    return found is not None and (not equals or found == wanted)


def _image(row: Row, value: str) -> bool:
    found, wanted = _familiar(row.origin.image), _familiar(value)
    return bool(found) and wanted in (found, _without_tag(found))


def _familiar(image: str) -> str:
    """Return an image's name as users write it: ``docker.io/library/redis`` is ``redis``."""
    return image.removeprefix("docker.io/").removeprefix("library/").removesuffix(":latest")


def _without_tag(image: str) -> str:
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _runtime(row: Row, value: str) -> bool:
    parts = row.runtime.split(".")
    short = parts[-2] if len(parts) > 1 else ""
    return bool(row.runtime) and value in (row.runtime, short)


def _pod(row: Row, value: str) -> bool:
    origin = row.origin
    full = f"{origin.pod_namespace}/{origin.pod}"
    return bool(value) and (value in (origin.pod, full) or origin.pod_id.startswith(value))


_MATCHES: dict[str, Callable[[Row, str], bool]] = {
    "id": _id,
    "name": _name,
    "namespace": lambda row, value: row.found.namespace == value,
    "status": lambda row, value: row.state == value,
    "exited": lambda row, value: row.exit_status == int(value),
    "label": _label,
    "image": _image,
    "runtime": _runtime,
    "pod": _pod,
}
