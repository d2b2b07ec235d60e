"""The names of :mod:`shimctl.images` for asyncio; ``prepare`` works in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shimctl.images import preparing
from shimctl.on_asyncio import ASYNCIO

if TYPE_CHECKING:
    from shimctl.images.names import *  # noqa: F403 - each is named there
else:
    from shimctl.images.names import NAMES
    from shimctl.images.names import find as __getattr__  # noqa: F401 - Python calls it

    __all__ = NAMES

prepare = preparing.prepare.on(ASYNCIO)
