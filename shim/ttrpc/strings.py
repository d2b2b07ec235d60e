"""Strings of messages: none has a NUL byte, which ends a string in every system call.

What is behind one would be cut off, and the request would mean another file.
"""

from __future__ import annotations

from google.protobuf.message import Message

from shim.errors import InvalidError


def check_strings(message: Message) -> None:
    """:raises InvalidError: a string in ``message``, or below, has a NUL byte."""
    for field, value in message.ListFields():
        if hasattr(value, "items"):  # a map
            values = [one for pair in value.items() for one in pair]
        else:
            values = value if field.is_repeated else [value]
        for one in values:
            if isinstance(one, Message):
                check_strings(one)
            elif isinstance(one, str) and "\0" in one:
                name = f"{message.DESCRIPTOR.name}.{field.name}"
                raise InvalidError(f"{name} holds a NUL byte, which no name has")
