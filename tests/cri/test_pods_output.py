"""Output of a pod's containers while containerd is away, by the pod's annotation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib import GRPCError

from tests.e2e.test_lifecycle import alive
from tests.e2e.test_output_policy import LINES, SAID, SAY, spools
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cri.node import Node
    from tests.cri.pods import Pod

__all__ = ["spools"]

pytestmark = pytest.mark.e2e
SCENARIO = "Output nobody reads"


def test_what_a_container_says_meanwhile_is_in_the_log_as_its_pods_annotation_asks(
    node: Node, make_pod: Callable[..., Pod]
) -> None:
    """containerd finds the task stopped, and deletes it: see the test with output in
    ``test_pods_restart``.
    """
    pod = make_pod(annotations={"io.trio-shim.output": "spool"})
    container = pod.start("sh", "-c", SAY)
    pid = pod.pid(container)
    node.kill()
    Path(f"/proc/{pid}/root/go").touch()
    wait_until("it has ended", lambda: not alive(pid), 60)
    node.start()
    assert pod.wait_exit(container) == (6, "Error")
    pod.wait_lines("c0", LINES)
    assert [text for _, text in pod.said("c0")] == SAID


def test_a_policy_there_is_not_fails_the_pod_by_name(make_pod: Callable[..., Pod]) -> None:
    with pytest.raises(GRPCError, match=r"annotation io\.trio-shim\.output must be block"):
        make_pod(annotations={"io.trio-shim.output": "spol"})
