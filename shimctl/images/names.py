"""The names that :mod:`shimctl.images` has on every framework.

A module is imported at the first use of one of its names, because some load trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimctl.images.config import ImageConfig as ImageConfig
    from shimctl.images.config import Overrides as Overrides
    from shimctl.images.config import Volume as Volume
    from shimctl.images.image import Image as Image
    from shimctl.images.overlay import mounts_for as mounts_for
    from shimctl.images.reference import is_reference as is_reference
    from shimctl.images.step import Step as Step
    from shimctl.images.store import Store as Store
    from shimctl.images.store import release as release

_HOMES = {
    "Image": "image",
    "ImageConfig": "config",
    "Overrides": "config",
    "Step": "step",
    "Store": "store",
    "Volume": "config",
    "is_reference": "reference",
    "mounts_for": "overlay",
    "release": "store",
}
NAMES = [*_HOMES, "prepare"]  # each framework has its own ``prepare``


def find(name: str) -> Any:
    """Return the object of one of the names; a module's ``__getattr__``.

    :raises AttributeError: there is no such name.
    """
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'shimctl.images' has no attribute {name!r}")
    return getattr(import_module(f"shimctl.images.{_HOMES[name]}"), name)
