"""Image references in skopeo's syntax: ``oci:LAYOUT:TAG``, and two kinds of archive.

A path cannot contain a colon.  The first colon after the kind ends the path, as in
skopeo.

Source: containers-transports(5); distribution/reference for the names in a
docker-archive, where the default registry and tag may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shim.errors import InvalidError

OCI, OCI_ARCHIVE, DOCKER_ARCHIVE = "oci", "oci-archive", "docker-archive"
KINDS = (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE)


@dataclass(frozen=True, slots=True)
class Reference:
    """One image of a layout or an archive.  An empty ``name`` means its only image."""

    kind: str
    path: Path
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f":{self.name}" if self.name else "")

    def absolute(self) -> Reference:
        """Return the same reference with an absolute path."""
        return replace(self, path=self.path.absolute())


def is_reference(text: str) -> bool:
    """Return whether ``text`` begins with a kind; else it is the path of a bundle."""
    return text.partition(":")[0] in KINDS and ":" in text


def parse(text: str) -> Reference:
    """Read a reference.

    :raises InvalidError: ``text`` is not a reference.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise InvalidError(f"{text!r} is not an image; {hint_for(text)}")
    path, colon, name = rest.partition(":")
    if not path or (colon and not name) or "\0" in text:
        what = "LAYOUT:TAG" if kind == OCI else "FILE[:NAME]"
        raise InvalidError(f"{text!r} is not an image; use {kind}:{what}")
    return Reference(kind, Path(path), name)


def hint_for(text: str) -> str:
    """Return the remedy in an error about ``text``, which is not a reference."""
    if text.startswith("docker://"):
        return f"run `skopeo copy {text} oci:LAYOUT:TAG`, then use oci:LAYOUT:TAG"
    return "use oci:LAYOUT:TAG, oci-archive:FILE or docker-archive:FILE"


def full_name(name: str) -> str:
    """Return a Docker name, such as ``busybox`` or ``me/it:1``, with its registry and tag."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
