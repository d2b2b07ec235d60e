"""A rig with the whole shim and real runc for each test."""

from __future__ import annotations

from tests.process.conftest import _warm, rig

__all__ = ["_warm", "rig"]
