"""Adds the exit events that a killed daemon did not publish to the journal of its bundle.

A daemon records an exit at once, and publishes it after the output was read and the execs have
exited.  If it is killed in between, the record alone has the exit.  ``delete`` queues the
event then: once, because it notes this in the record, as the daemon does after each event.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskExit
from shim.events.journal import all_payloads
from shim.events.topics import topic_of
from shim.records import note_published, unpublished_exits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.events.backlog import Backlog

_EXIT = TaskExit.DESCRIPTOR.full_name


def has_unpublished(journal: str) -> bool:
    """Return whether the bundle of ``journal`` has an exit of which no event may be in it."""
    return bool(unpublished_exits(_bundle_of(journal)))


def add_unpublished(backlog: Backlog, id_: str, namespace: str) -> None:
    """Queue the missing exit events of the container ``id_``; ``backlog`` has its journal.

    :raises OSError: the journal cannot be read.
    """
    bundle = _bundle_of(backlog.path)
    found = unpublished_exits(bundle)
    published = list(_published(backlog.path)) if found else []
    for exec_id, exit_ in found:
        event = TaskExit(
            container_id=id_, id=exec_id or id_, pid=exit_.pid, exit_status=exit_.exit_status
        )
        event.exited_at.FromNanoseconds(exit_.exited_at)
        # The daemon may have been killed before it could note that.
        if event not in published:
            backlog.append(_envelope(event, namespace))
        note_published(bundle, exec_id)


def _bundle_of(journal: str) -> str:
    return journal.rpartition("/")[0]


def _published(journal: str) -> Iterator[TaskExit]:
    """Yield the exit events in the file, the acknowledged ones too."""
    try:
        for payload in all_payloads(journal):
            envelope = Envelope.FromString(payload)
            if envelope.event.type_url == _EXIT:
                yield TaskExit.FromString(envelope.event.value)
    except (FileNotFoundError, DecodeError):
        return


def _envelope(event: TaskExit, namespace: str) -> Envelope:
    now = time.time_ns()
    return Envelope(
        timestamp=Timestamp(seconds=now // 10**9, nanos=now % 10**9),
        namespace=namespace,
        topic=topic_of(event),
        event=AnyMessage(type_url=_EXIT, value=event.SerializeToString()),
    )
