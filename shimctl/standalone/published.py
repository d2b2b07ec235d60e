"""One event as it was published, with the fields of its message in JSON's types.

The command line shows every kind of event by the same rules; a program uses
:mod:`shimctl.events`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from shim import names
from shim.api import containerevents_pb2, events_pb2
from shimctl.values import time_of

if TYPE_CHECKING:
    from shim.api.envelope_pb2 import Envelope

# Both modules register the types of their messages.
_PACKAGES = (events_pb2.DESCRIPTOR.package, containerevents_pb2.DESCRIPTOR.package)


@dataclass(frozen=True, slots=True)
class Published:
    """One event.  ``fields`` are those of the message ``type``, empty if it is unknown.

    ``at`` is None only if the shim sent no time.
    """

    at: datetime | None
    namespace: str
    topic: str
    type: str
    fields: dict[str, Any]

    @property
    def container(self) -> str:
        """The id of the event's container, empty if it has none."""
        return str(self.fields.get("container_id") or self.fields.get("id") or "")

    def encode(self) -> bytes:
        """Return the event as one line of JSON, without the line's end."""
        fields = asdict(self) | {"at": self.at.isoformat() if self.at else None}
        return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


def published(envelope: Envelope) -> Published:
    """Return the event in an envelope."""
    name = names.type_name(envelope.event.type_url)
    return Published(
        at=time_of(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        type=name,
        fields=_fields(name, envelope.event.value),
    )


def decode(line: bytes) -> Published | None:
    """Return the event of a line that :meth:`Published.encode` made; None for a damaged one."""
    try:
        fields: dict[str, Any] = json.loads(line)
        at = fields["at"]
        return Published(
            at=None if at is None else datetime.fromisoformat(at),
            namespace=str(fields["namespace"]),
            topic=str(fields["topic"]),
            type=str(fields["type"]),
            fields=dict(fields["fields"]),
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _fields(name: str, value: bytes) -> dict[str, Any]:
    if name.rpartition(".")[0] not in _PACKAGES:
        return {}
    try:
        kind = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
        return MessageToDict(
            kind.FromString(value),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
    except (KeyError, DecodeError, SerializeToJsonError):
        return {}  # of an unknown type, damaged, or with an invalid time
