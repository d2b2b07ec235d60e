"""The names of :mod:`shimctl.images` for plain threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.images import preparing
from shimctl.on_threads import function

if TYPE_CHECKING:
    from shimctl.images.names import *  # noqa: F403 - each is named there
else:
    from shimctl.images.names import NAMES
    from shimctl.images.names import find as __getattr__  # noqa: F401 - Python calls it

    __all__ = NAMES

prepare = function(preparing.prepare)
