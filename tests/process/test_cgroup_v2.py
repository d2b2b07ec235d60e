"""Containers on a host of cgroup version 2, in a mount namespace that makes this one look so."""

from __future__ import annotations

import pytest

from tests.cgroup.version2 import check_on_version_2
from tests.process.inside_v2 import CHECKS

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("check", CHECKS)
def test_on_version_2(check: str) -> None:
    check_on_version_2("tests.process.inside_v2", check)
