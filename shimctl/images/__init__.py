"""Runs containers from images in OCI layouts and in archives, without a registry client.

    image = await prepare("oci:/srv/images:redis")
    config = image.oci_config(args=["redis-server"])   # the bundle's config.json
    rootfs = mounts_for(image, bundle)                 # CreateTaskRequest.rootfs
    ...
    release(bundle)                                    # when the container is deleted

skopeo reads an image and umoci unpacks it.  This package does the remaining work: it
checks images, stores each set of layers once, shares it between containers, makes
config.json and the rootfs, and removes both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shimctl.images.config import ImageConfig, Overrides, Volume
    from shimctl.images.image import Image, prepare
    from shimctl.images.overlay import mounts_for
    from shimctl.images.reference import is_reference
    from shimctl.images.step import Step
    from shimctl.images.store import Store, release

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

# The module of each public name.  A module is imported at the first use of its name.
_MODULES = {
    "shimctl.images.config": ("ImageConfig", "Volume", "Overrides"),
    "shimctl.images.image": ("Image", "prepare"),
    "shimctl.images.overlay": ("mounts_for",),
    "shimctl.images.reference": ("is_reference",),
    "shimctl.images.step": ("Step",),
    "shimctl.images.store": ("Store", "release"),
}


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)
