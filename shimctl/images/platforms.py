"""Which machine an image is for: ``linux/amd64``, ``linux/arm64/v8``.

Source: the OCI image specification, image-index.md ("platform"), whose names
are those of Go; containerd/platforms for the variants that are taken as equal.
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
# What is meant where no variant is named.
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image was built for.  An empty field of an image says nothing."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        parts = (self.os, self.architecture, self.variant)
        return "/".join(part for part in parts if part) or "unknown"

    def runs(self, image: Platform) -> bool:
        """Tell whether ``image`` is for this machine."""
        default = _DEFAULT_VARIANTS.get(self.architecture, "")
        return (
            image.os in ("", self.os)
            and image.architecture in ("", self.architecture)
            and (image.variant or default) == (self.variant or default)
        )


def parse(text: str) -> Platform:
    """Read ``OS/ARCHITECTURE[/VARIANT]``, or the architecture alone.

    :raises InvalidError: it is something else.
    """
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(part.isalnum() and part.isascii() for part in parts):
        raise InvalidError(f"{text!r} is no platform; say linux/amd64 or linux/arm64/v8")
    return Platform(*parts)


def of_machine(machine: str) -> Platform:
    """Return the platform of what ``uname -m`` calls ``machine``."""
    return Platform("linux", *_ARCHITECTURES.get(machine, (machine, "")))
