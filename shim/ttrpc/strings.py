"""Check that no string of a message has a NUL byte, which ends a string in system calls.

The kernel would ignore the part behind the NUL byte, so a path would name another file.
"""

from __future__ import annotations

from google.protobuf.message import Message

from shim.errors import InvalidError


def check_strings(message: Message) -> None:
    """:raises InvalidError: a string in ``message``, or in a nested one, has a NUL byte."""
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
                raise InvalidError(f"{name} holds a NUL byte; remove it")
