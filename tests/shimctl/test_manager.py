"""The manager of a container, and the commands that an error names."""

from __future__ import annotations

import pytest

from shimctl.listing.manager import Manager, manager_of, run_again, show_log


@pytest.mark.parametrize(
    ("namespace", "annotations", "manager"),
    [
        ("moby", {}, Manager.DOCKER),
        ("default", {"nerdctl/name": "web"}, Manager.NERDCTL),
        ("k8s.io", {"io.kubernetes.cri.container-type": "container"}, Manager.KUBERNETES),
        ("default", {"io.kubernetes.cri-o.ContainerType": "sandbox"}, Manager.KUBERNETES),
        ("default", {"other": "x"}, Manager.CONTAINERD),
    ],
)
def test_marks_tell_the_manager(
    namespace: str, annotations: dict[str, str], manager: Manager
) -> None:
    assert manager_of(namespace, annotations) is manager


def test_each_manager_has_its_own_commands() -> None:
    assert show_log(Manager.NERDCTL, "dev", "web") == "nerdctl -n dev logs web"
    assert show_log(Manager.DOCKER, "moby", "web") == "docker logs web"
    assert run_again(Manager.DOCKER, "moby", "web", "restart") == "use `docker restart web`"
    assert run_again(Manager.NERDCTL, "dev", "web", "start") == "use `nerdctl -n dev start web`"
    assert run_again(Manager.KUBERNETES, "k8s.io", "web", "restart") == (
        "after `crictl stop web` the kubelet runs a new one"
    )
    assert run_again(Manager.CONTAINERD, "dev", "web", "restart") == (
        "use `ctr -n dev task kill web`, `ctr -n dev task delete web`, "
        "`ctr -n dev task start -d web`"
    )
