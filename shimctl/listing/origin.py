"""Where a container comes from: its names and its image, as its manager recorded them.

Source: containerd internal/cri/annotations; CRI-O internal/annotations and the kubelet's
labels, which CRI-O repeats as annotations; nerdctl pkg/labels; docker's config.v2.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shim import names

if TYPE_CHECKING:
    from collections.abc import Mapping

# The annotations with each fact; the first one present counts.
_POD = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_POD_NAMESPACE = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
_POD_ID = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
_KIND = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_CONTAINER = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_NAME = ("nerdctl/name", "io.kubernetes.cri-o.Name")
_IMAGE = (
    names.IMAGE,
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri.podsandbox.image-name",
    "io.kubernetes.cri-o.ImageName",
    "io.kubernetes.cri-o.Image",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """The names of a container; an unknown text is empty.

    ``name`` is ``POD/CONTAINER`` or ``POD`` in Kubernetes, and the container's name in
    nerdctl and docker.  ``pod_id`` is the id of the pod's sandbox.  ``labels`` are the
    bundle's annotations, and docker's labels.
    """

    name: str = ""
    image: str = ""
    pod: str = ""
    pod_namespace: str = ""
    pod_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def origin_of(config: Mapping[str, Any], docker: Mapping[str, Any]) -> Origin:
    """Return the origin of a container with this OCI config.

    ``docker`` is dockerd's file about the container, empty if another manager made it.
    Values of a wrong type count as absent.
    """
    annotations = _texts(config.get("annotations"))
    made = _mapping(docker.get("Config"))
    labels = annotations | _texts(made.get("Labels"))
    pod = _first(annotations, _POD)
    container = _first(annotations, _CONTAINER)
    if _first(annotations, _KIND) == "sandbox":
        container = ""
    name = _first(annotations, _NAME)
    if pod:
        name = f"{pod}/{container}" if container else pod
    return Origin(
        name=name or _text(docker.get("Name")).lstrip("/"),
        image=_first(annotations, _IMAGE) or _text(made.get("Image")),
        pod=pod,
        pod_namespace=_first(annotations, _POD_NAMESPACE),
        pod_id=_first(annotations, _POD_ID),
        labels=labels,
    )


def docker_file(config: Mapping[str, Any]) -> str:
    """Return the path of dockerd's file about the container, empty if docker did not make it.

    dockerd mounts ``hostname`` or ``resolv.conf`` from the container's directory, which
    has ``config.v2.json``, too.
    """
    mounts = config.get("mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        source = _text(_mapping(mount).get("source"))
        directory, _, file = source.rpartition("/")
        if file in ("hostname", "resolv.conf", "hosts") and "/containers/" in directory:
            return f"{directory}/config.v2.json"
    return ""


def command_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the command line of the init process, empty if it is malformed."""
    args = _mapping(config.get("process")).get("args")
    return tuple(map(str, args)) if isinstance(args, list) else ()


def _first(annotations: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return next((annotations[key] for key in keys if annotations.get(key)), "")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> dict[str, str]:
    found = _mapping(value)
    return {key: text for key, text in found.items() if isinstance(text, str)}
