"""examples/kubernetes: objects that an API server accepts, with names that the nodes have.

There is no API server here, so its rules are below as far as the examples need them.

Source: kubernetes/api node/v1 and core/v1 types.go for the fields,
apimachinery/pkg/util/validation/validation.go for the names.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from shim.hostfile import Output
from tests.examples.files import HANDLER, text_of, toml_of, with_choices

# IsDNS1123Label, IsDNS1123Subdomain and IsQualifiedName.
_LABEL = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_QUALIFIED = re.compile(r"(?=.{1,63}$)([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

# The fields of the types, as far as an example may need them.
_CLASS = {"apiVersion", "kind", "metadata", "handler", "overhead", "scheduling"}
_SCHEDULING = {"nodeSelector", "tolerations"}
_METADATA = {"name", "namespace", "labels", "annotations"}
_POD = {"apiVersion", "kind", "metadata", "spec"}
_POD_SPEC = {"runtimeClassName", "restartPolicy", "containers", "nodeSelector", "volumes"}
_CONTAINER = {
    *("name", "image", "imagePullPolicy", "command", "args", "workingDir"),
    *("env", "ports", "resources", "stdin", "tty", "volumeMounts"),
}


def runtime_class(*, choices: bool = False) -> Any:
    name = "kubernetes/runtimeclass.yaml"
    return yaml.safe_load(with_choices(name) if choices else text_of(name))


def pod() -> Any:
    return yaml.safe_load(text_of("kubernetes/pod.yaml"))


@pytest.mark.parametrize("choices", [False, True])
def test_the_runtime_class_is_one(choices: bool) -> None:
    told = runtime_class(choices=choices)
    assert told.keys() <= _CLASS
    assert (told["apiVersion"], told["kind"]) == ("node.k8s.io/v1", "RuntimeClass")
    assert told["metadata"].keys() == {"name"}
    assert _SUBDOMAIN.fullmatch(told["metadata"]["name"])
    assert _LABEL.fullmatch(told["handler"])
    assert told.get("scheduling", {}).keys() <= _SCHEDULING
    # A label's value is a string; YAML makes more than that of `true`.
    selector = told.get("scheduling", {}).get("nodeSelector", {})
    assert bool(selector) == choices
    assert all(isinstance(value, str) for value in selector.values())


def test_the_pod_is_one_of_that_class() -> None:
    told = pod()
    assert told.keys() == _POD
    assert (told["apiVersion"], told["kind"]) == ("v1", "Pod")
    assert told["metadata"].keys() <= _METADATA
    assert _SUBDOMAIN.fullmatch(told["metadata"]["name"])
    assert told["spec"].keys() <= _POD_SPEC
    assert told["spec"]["runtimeClassName"] == runtime_class()["metadata"]["name"]
    assert told["spec"]["restartPolicy"] in {"Always", "OnFailure", "Never"}
    for container in told["spec"]["containers"]:
        assert container.keys() <= _CONTAINER
        assert _LABEL.fullmatch(container["name"])
        assert container["imagePullPolicy"] in {"Always", "IfNotPresent", "Never"}
        assert all(isinstance(word, str) for word in container["command"])
        assert not re.search(r"\$[$(]", " ".join(container["command"])), "Kubernetes' own syntax"
        assert set(container["resources"]) <= {"limits", "requests"}


def test_the_handler_is_the_name_of_the_runtime_on_every_node() -> None:
    handler = runtime_class()["handler"]
    assert handler == HANDLER
    for name in ("containerd/config-v2.toml", "containerd/config-v3.toml"):
        (plugin,) = toml_of(name)["plugins"].values()
        assert handler in plugin["containerd"]["runtimes"]
    assert handler in toml_of("crio/10-trio.conf")["crio"]["runtime"]["runtimes"]


def test_the_pods_annotations_are_ours_and_mean_what_they_say() -> None:
    annotations = pod()["metadata"]["annotations"]
    for name, value in annotations.items():
        assert _QUALIFIED.fullmatch(name)
        assert isinstance(value, str)
        assert name.startswith("io.trio-shim.")
    output = Output().annotated(annotations)
    assert (output.policy, output.limit) == ("spool", 16 << 20)
