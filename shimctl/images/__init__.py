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

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shimctl.images.image import prepare as prepare
    from shimctl.images.names import *  # noqa: F403 - each is named there
else:
    from shimctl.images.names import NAMES, find

    __all__ = NAMES

    def __getattr__(name: str) -> object:
        if name == "prepare":
            from shimctl.images.image import prepare

            return prepare
        return find(name)

    def __dir__() -> list[str]:
        return sorted(NAMES)
