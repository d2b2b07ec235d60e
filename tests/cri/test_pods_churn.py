"""containerd is killed again and again while pods come, write and go.

``python -m tests.torture.churn`` is the same by hand, for as long as one likes.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cri.conftest import open_node
from tests.torture.churn import Churn, newest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SCENARIO = "Restart of the manager"


def test_no_line_and_no_retry_is_lost_when_containerd_is_killed_again_and_again(
    tmp_path: Path,
) -> None:
    manager = newest()
    if manager.version < (2,) or shutil.which("runc") is None:
        pytest.skip("needs runc, and the containerd 2 of tests/managers/fetch.sh")
    with open_node(tmp_path, manager) as node:
        report = Churn(node, calm=True).run(kills=6, workers=3)
    assert not report.faults, str(report)
    assert report.containers >= 6
