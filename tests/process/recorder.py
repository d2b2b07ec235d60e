"""A stand-in for runc that writes down how it is called, and goes on to the real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.process.rig import Rig

# One directory a call: the arguments, each ended by a NUL, for they may hold anything.
_SCRIPT = """calls=$(dirname "$0")/calls
call=$(mktemp -d "$calls/XXXXXX")
printf '%s\\0' "$@" >"$call/argv"
"""


@dataclass(frozen=True)
class Recorder:
    """``binary`` is to be the ``binary_name`` of a container."""

    binary: str
    _calls: Path

    def calls(self, verb: str) -> list[list[str]]:
        """Return the arguments of each call of ``verb`` so far, in no order."""
        argvs = [path.read_bytes() for path in self._calls.glob("*/argv")]
        split = [argv.decode().split("\0")[:-1] for argv in argvs]
        return [argv for argv in split if verb in argv]

    def call(self, verb: str) -> list[str]:
        """Return the arguments of the one call of ``verb``."""
        [argv] = self.calls(verb)
        return argv


def record(rig: Rig, script: str = 'exec runc "$@"') -> Recorder:
    """Make a recorder; ``script`` runs after it, with runc's arguments in ``$@``."""
    calls = rig.root / "calls"
    calls.mkdir()
    return Recorder(rig.wrapper("recorder", _SCRIPT + script), calls)
