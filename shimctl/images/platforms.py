"""The platform of an image or a machine: ``linux/amd64``, ``linux/arm64/v8``.

Source: the OCI image specification, image-index.md ("platform"), which uses Go's
names; containerd/platforms for the default variants.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.errors import InvalidError

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
# The variant of a platform without one.
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and an architecture.  An empty field of an image fits every machine."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        parts = (self.os, self.architecture, self.variant)
        return "/".join(part for part in parts if part) or "unknown"

    def runs(self, image: Platform) -> bool:
        """Return whether a machine of this platform can run an image of platform ``image``."""
        default = _DEFAULT_VARIANTS.get(self.architecture, "")
        return (
            image.os in ("", self.os)
            and image.architecture in ("", self.architecture)
            and (image.variant or default) == (self.variant or default)
        )


def parse(text: str) -> Platform:
    """Read ``OS/ARCHITECTURE[/VARIANT]``, or the architecture alone.

    :raises InvalidError: ``text`` has another form.
    """
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(part.isalnum() and part.isascii() for part in parts):
        raise InvalidError(
            f"{text!r} is not a platform; use linux/amd64, linux/arm64/v8 and the like"
        )
    return Platform(*parts)


def of_machine(machine: str) -> Platform:
    """Return the platform of a machine, given the output of ``uname -m``."""
    return Platform("linux", *_ARCHITECTURES.get(machine, (machine, "")))
