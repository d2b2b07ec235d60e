"""Select and format events: the filters of ``shimctl events``, and the text of one event.

Source: docker events for the notation of filters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Any

    from shimctl.standalone.published import Published

KEYS = ("container", "event", "namespace", "image")


@dataclass(frozen=True, slots=True)
class Filter:
    """The wanted events.  Values of one key are alternatives; all given keys must match.

    ``container`` is an id or its beginning, ``event`` a topic such as ``/tasks/exit`` or
    its end, ``exit``.
    """

    namespace: str = ""
    wanted: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def matches(self, event: Published) -> bool:
        """Return whether the event is wanted; one without a time is."""
        if self.namespace not in ("", event.namespace):
            return False
        if event.at is not None and (
            (self.since is not None and event.at < self.since)
            or (self.until is not None and event.at > self.until)
        ):
            return False
        keys = {key for key, _ in self.wanted}
        return all(
            any(_is(event, key, value) for name, value in self.wanted if name == key)
            for key in keys
        )


def parse_filters(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Parse filters of the form ``KEY=VALUE``.

    :raises InvalidError: one has another form, or an unknown key.
    """
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value or key not in KEYS:
            raise InvalidError(
                f"{text!r} is not a filter for events; use KEY=VALUE with one of the keys "
                f"{', '.join(KEYS)}"
            )
        pairs.append((key, value))
    return tuple(pairs)


def _is(event: Published, key: str, value: str) -> bool:
    match key:
        case "container":
            return event.container.startswith(value)
        case "event":
            return event.topic == value or event.topic.endswith(f"/{value}")
        case "namespace":
            return event.namespace == value
        case _:
            return event.fields.get("image") == value


def text_line(event: Published) -> str:
    """Format an event as one line: time, namespace, topic and the fields that have a value."""
    at = "-" if event.at is None else event.at.isoformat(timespec="milliseconds")
    fields = (
        f"{key}={_text(value)}" for key, value in event.fields.items() if value not in ("", [], {})
    )
    return " ".join((at.replace("+00:00", "Z"), event.namespace, event.topic, *fields))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
