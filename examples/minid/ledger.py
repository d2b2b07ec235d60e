"""What must survive a crash: how each generation ended, and what is known of a container.

``exits.jsonl`` has one line for each generation that ended, on the disk before
anything else follows from it.  Many tell of an end, the event, ``Wait``, the exit
record in the bundle; the first is written, the others are answered with it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from minid.policy import Record

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class End:
    """How ``generation`` of a container ended, at a Unix time.

    ``code`` is the shell's number, or None if it never ran; ``reason`` says why.
    """

    container: str
    generation: int
    code: int | None
    at: float
    reason: str = ""

    def line(self) -> bytes:
        at = datetime.fromtimestamp(self.at, UTC).isoformat()
        return json.dumps(asdict(self) | {"at": at}).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> End:
        """:raises ValueError, TypeError, KeyError: it is not one of our lines."""
        values = json.loads(line)
        return cls(**values | {"at": datetime.fromisoformat(values["at"]).timestamp()})


class Ledger:
    """The file of ends, open to be appended to.  A context manager owns it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = path.read_bytes()
        whole = data.rpartition(b"\n")[0]
        if (size := len(whole) + bool(whole)) != len(data):
            os.ftruncate(self._fd, size)  # the machine died in the middle of a line
        self.last: dict[str, End] = {}
        for line in whole.split(b"\n"):
            with suppress(ValueError, TypeError, KeyError):
                end = End.of_line(line)
                self.last[end.container] = end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def find(self, container: str, generation: int) -> End | None:
        """Return how the newest generation of a container to end did, if it is this one."""
        last = self.last.get(container)
        return last if last is not None and last.generation == generation else None

    def record(self, end: End) -> End:
        """Write ``end`` down unless that generation has one; return the one that counts.

        Generations end one after the other: who tells of an older one is too late.
        """
        known = self.last.get(end.container)
        if known is not None and known.generation >= end.generation:
            return known
        size = os.fstat(self._fd).st_size
        try:
            line = end.line()
            if os.write(self._fd, line) != len(line):
                raise OSError("the exits log takes no more: make room on its disk")  # noqa: TRY301 - undone below
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self.last[end.container] = end
        return end


def read_record(path: Path) -> Record | None:
    """Return what was written at ``path``, or None if that makes no sense."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        return Record(**{field.name: values[field.name] for field in fields(Record)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_json(path: Path, value: object) -> None:
    """Replace the file at ``path`` at once, or not at all."""
    new = path.with_name(f".{path.name}.new")
    with open(new, "w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
