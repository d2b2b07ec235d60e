"""The names of :mod:`shimctl.images` for asyncio; ``prepare`` works in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shimctl.images import preparing
from shimctl.on_asyncio import ASYNCIO

if TYPE_CHECKING:
    from shimctl.images import (
        Image,
        ImageConfig,
        Overrides,
        Step,
        Store,
        Volume,
        is_reference,
        mounts_for,
        release,
    )

__all__ = [
    "Image",
    "ImageConfig",
    "Overrides",
    "Step",
    "Store",
    "Volume",
    "is_reference",
    "mounts_for",
    "prepare",
    "release",
]

prepare = preparing.prepare.on(ASYNCIO)


def __getattr__(name: str) -> Any:  # the other names load trio
    import shimctl.images

    return getattr(shimctl.images, name)
