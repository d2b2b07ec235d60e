"""The messages and methods of ``cri.proto``."""

from __future__ import annotations

from pathlib import Path

from tests.protos import Protocol

CRI = Protocol(Path(__file__).with_name("cri.proto"))


def enum(name: str, number: int) -> str:
    """Name a value, such as CONTAINER_EXITED."""
    return CRI.value_name(name, number)


def value(name: str) -> int:
    """Return the number of a value of NamespaceMode."""
    return CRI.value("NamespaceMode", name)
