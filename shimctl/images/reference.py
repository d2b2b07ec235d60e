"""Where an image is, in the words of skopeo: ``oci:LAYOUT:TAG`` and the two archives.

A path has no colon in it: the first one after the kind ends it, as skopeo has it.

Source: containers-transports(5); distribution/reference for the names in a
docker-archive, whose default registry and tag may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shim.errors import InvalidError

OCI, OCI_ARCHIVE, DOCKER_ARCHIVE = "oci", "oci-archive", "docker-archive"
KINDS = (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE)


@dataclass(frozen=True, slots=True)
class Reference:
    """One image of a layout or an archive.  An empty ``name`` is the only image there is."""

    kind: str
    path: Path
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f":{self.name}" if self.name else "")

    def absolute(self) -> Reference:
        """Return the same reference for whoever has another working directory."""
        return replace(self, path=self.path.absolute())


def is_reference(text: str) -> bool:
    """Tell an image from the path of a bundle: does ``text`` begin with a kind?"""
    return text.partition(":")[0] in KINDS and ":" in text


def parse(text: str) -> Reference:
    """Read a reference.

    :raises InvalidError: it is none.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise InvalidError(f"{text!r} is no image; {hint_for(text)}")
    path, colon, name = rest.partition(":")
    if not path or (colon and not name) or "\0" in text:
        what = "LAYOUT:TAG" if kind == OCI else "FILE[:NAME]"
        raise InvalidError(f"{text!r} is no image; say {kind}:{what}")
    return Reference(kind, Path(path), name)


def hint_for(text: str) -> str:
    """Return what to say instead of ``text``, which is no reference."""
    if text.startswith("docker://"):
        return f"say `skopeo copy {text} oci:LAYOUT:TAG`, then oci:LAYOUT:TAG"
    return "say oci:LAYOUT:TAG, oci-archive:FILE or docker-archive:FILE"


def full_name(name: str) -> str:
    """Return a Docker name with everything that may be left out: ``busybox``, ``me/it:1``."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
