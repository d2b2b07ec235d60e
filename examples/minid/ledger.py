"""The state on disk: the end of each generation, and the record of each container.

``exits.jsonl`` has one line for each generation that ended.  The line is on the disk
before minid acts on the end.  An end is reported by an event, by ``Wait`` and by the
exit record in the bundle.  The first report is written; for later ones the written end
is returned.
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
    """The end of ``generation`` of a container; ``at`` is a Unix time.

    ``code`` is the exit status as in a shell, or None if the container could not be
    started.  ``reason`` is the error in that case, or why the code is not its own.
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
        """Return the end in a line of the ledger.

        :raises ValueError, TypeError, KeyError: the line has another form.
        """
        values = json.loads(line)
        return cls(**values | {"at": datetime.fromisoformat(values["at"]).timestamp()})


class Ledger:
    """The file of ends, open for appending.  Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = path.read_bytes()
        whole = data.rpartition(b"\n")[0]
        if (size := len(whole) + bool(whole)) != len(data):
            os.ftruncate(self._fd, size)  # the machine crashed while a line was written
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
        """Return the end of this generation, if it is the container's newest that ended."""
        last = self.last.get(container)
        return last if last is not None and last.generation == generation else None

    def record(self, end: End) -> End:
        """Write ``end`` unless the generation has one; return the written end.

        Generations end in order.  For an older generation the newest end is returned.

        :raises OSError: the line cannot be written; the file is as before.
        """
        known = self.last.get(end.container)
        if known is not None and known.generation >= end.generation:
            return known
        size = os.fstat(self._fd).st_size
        try:
            line = end.line()
            if os.write(self._fd, line) != len(line):
                raise OSError("cannot write the whole line to exits.jsonl; make room on its disk")  # noqa: TRY301 - undone below
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self.last[end.container] = end
        return end


def read_record(path: Path) -> Record | None:
    """Return the record in the file ``path``, None if it cannot be read or is invalid."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        return Record(**{field.name: values[field.name] for field in fields(Record)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_json(path: Path, value: object) -> None:
    """Replace the file ``path`` atomically.

    :raises OSError: the file cannot be written; the old one stays.
    """
    new = path.with_name(f".{path.name}.new")
    with open(new, "w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
