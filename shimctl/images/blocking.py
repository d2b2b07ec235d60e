"""The names of :mod:`shimctl.images` for plain threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shimctl.images import preparing
from shimctl.on_threads import function

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

prepare = function(preparing.prepare)


def __getattr__(name: str) -> Any:  # the other names load trio
    import shimctl.images

    return getattr(shimctl.images, name)
