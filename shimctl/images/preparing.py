"""Prepare an image from trio, asyncio or a thread; the work itself runs on trio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shimctl.backend import portable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shimctl.backend import Backend
    from shimctl.images.image import Image
    from shimctl.images.step import Step


@portable
async def prepare(
    backend: Backend,
    reference: str,
    *,
    store: Path | None = None,
    platform: str = "",
    progress: Callable[[Step], None] | None = None,
) -> Image:
    """Unpack the image ``reference``; see :func:`shimctl.images.prepare`.

    On asyncio ``progress`` is called in another thread.
    """
    from shimctl.images import image

    return await backend.run_on_trio(
        partial(image.prepare, reference, store=store, platform=platform, progress=progress)
    )
