"""Read the stop signal of a container's image from its bundle.

Source: OCI image specification, conversion.md, "Annotation Fields".
"""

from __future__ import annotations

from pathlib import Path

from shim import jsontext

_ANNOTATION = "org.opencontainers.image.stopSignal"


def stop_signal(bundle: str | Path) -> str:
    """Return the stop signal of the image of the container in ``bundle``, or an empty string."""
    try:
        config = jsontext.loads(Path(bundle, "config.json").read_bytes())
    except (OSError, ValueError):
        return ""
    annotations = config.get("annotations") if isinstance(config, dict) else None
    found = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else ""
