"""Parse a manager's stdout address: a path, or a URL with a scheme.

Percent-encoded octets are bytes and need not be UTF-8; an invalid byte becomes a surrogate
in the path and the arguments, as in :func:`os.fsdecode`.

Source: containerd-shim-runc-v2 process/io.go (createIO) and process/io_util.go
(NewBinaryCmd); Go's net/url (Parse) for the syntax of a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

from shim.errors import InvalidError

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEMES = ("fifo", "file", "binary", "binary-v2")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed stdout address.  ``scheme`` is path, file, binary or binary-v2."""

    scheme: str
    path: str
    arguments: tuple[str, ...] = ()


def parse_address(stdout: str) -> Address:
    """Parse a stdout address.

    :raises InvalidError: its scheme is unknown, or its path or an argument is invalid.
    """
    url = _URL.fullmatch(stdout)
    if url is None:
        return Address("path", _checked(stdout, stdout))
    scheme = url["scheme"].lower()
    if scheme not in _SCHEMES:
        raise InvalidError(
            f"unknown stdio scheme {scheme!r} in {stdout!r}; "
            "use a fifo's path, file://, binary:// or binary-v2://"
        )
    if _CONTROL.search(stdout):
        raise InvalidError(f"{stdout!r}: a URL has no control characters; write them as %XX")
    before, _, query = url["rest"].partition("#")[0].partition("?")
    if before.startswith("//"):  # a host name, which is ignored
        before = "".join(before[2:].partition("/")[1:])
    path = _checked(unquote_to_bytes(before).decode(errors="surrogateescape"), stdout)
    if not path.startswith("/"):
        raise InvalidError(f"{stdout!r}: the path must be absolute")
    if scheme == "fifo":
        return Address("path", path)
    # The first value of each key, in the order given; Go's order is random.
    pairs: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        pairs.setdefault(_checked(key, stdout), _checked(value, stdout))
    return Address(scheme, path, tuple(text for pair in pairs.items() for text in pair))


def address_of_file(path: bytes) -> str:
    """Return the address of the file at the absolute ``path``."""
    return f"file://{quote_from_bytes(path)}"


def _checked(text: str, stdout: str) -> str:
    if "\0" in text:
        raise InvalidError(f"{stdout!r}: a path or an argument has no NUL byte")
    return text
