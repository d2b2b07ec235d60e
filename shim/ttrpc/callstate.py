"""The state of a kept connection: its running calls and its unsent replies, as JSON.

See :mod:`shim.ttrpc.kept`.  A later version of this program may read a state of this one.
"""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, NamedTuple

from shim.errors import InvalidError
from shim.ttrpc import wire_pb2
from shim.ttrpc.protocol import RequestReceived

if TYPE_CHECKING:
    from collections.abc import Iterable

# The version that is written, and those that can be read.  A call of version 1 may have begun.
VERSION, READABLE = 2, (1, 2)
_FIELDS = 6  # of a call; one that has begun has one more
_quoted = json.JSONEncoder().encode


class CallState(NamedTuple):
    """The state in a record: the running ``calls``, and the ``unsent`` replies.

    ``at`` is the number of bytes that the record had sent when ``unsent`` began.  ``begun``
    are the streams of the calls that may have had an effect, see :func:`begun_call`.
    """

    calls: list[RequestReceived]
    at: int
    unsent: bytes
    begun: frozenset[int] = frozenset()

    @classmethod
    def decode(cls, data: bytes) -> CallState:
        """Return a saved state; the timeouts of its calls are from now on.

        :raises InvalidError: it is no state, or of another version.
        """
        if not data:
            return cls([], 0, b"")
        try:
            value = json.loads(data)
            if value["version"] not in READABLE:
                raise InvalidError(f"a connection's state has version {value['version']}")
            calls = [_decode_call(*call[:_FIELDS]) for call in value["calls"]]
            known = value["version"] > 1
            begun = [call[0] for call in value["calls"] if call[_FIELDS:] or not known]
            return cls(calls, value["at"], base64.b64decode(value["unsent"]), frozenset(begun))
        except (ValueError, LookupError, TypeError) as exc:
            raise InvalidError(f"cannot read the state of a connection: {exc}") from None


def encode_state(calls: str, at: int, unsent: bytes) -> bytes:
    """Return a state; ``calls`` are values of :func:`encode_call`, joined by commas."""
    text = base64.b64encode(unsent).decode()
    return f'{{"version":{VERSION},"calls":[{calls}],"at":{at},"unsent":"{text}"}}'.encode()


def encode_call(event: RequestReceived) -> str:
    """Return the arguments of :func:`_decode_call`, as JSON."""
    deadline = "null" if event.timeout is None else repr(time.monotonic() + event.timeout)
    # Text is quoted quickly; a number or a list takes ten times as long.
    names = f"{_quoted(event.service)},{_quoted(event.method)}"
    pairs = ",".join([f"[{_quoted(pair.key)},{_quoted(pair.value)}]" for pair in event.pairs])
    payload = base64.b64encode(event.payload).decode()
    return f'[{event.stream_id},{names},"{payload}",{deadline},[{pairs}]]'


def begun_call(call: str) -> str:
    """Return a value of :func:`encode_call` for a call that begins to have effects."""
    return f"{call[:-1]},true]"


def _decode_call(
    stream_id: int,
    service: str,
    method: str,
    payload: str,
    deadline: float | None,
    pairs: Iterable[tuple[str, str]],
) -> RequestReceived:
    """Return a saved call.  ``deadline`` is on the monotonic clock, which a machine has one of."""
    return RequestReceived(
        stream_id,
        service,
        method,
        base64.b64decode(payload),
        None if deadline is None else deadline - time.monotonic(),
        [wire_pb2.KeyValue(key=key, value=value) for key, value in pairs],
    )
