"""The output policy that ``shimctl inspect`` shows is the one that a Create would use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shim import names
from shimctl.cli.inspection import Output, output_of

if TYPE_CHECKING:
    from pathlib import Path

SHIM = "/usr/local/bin/containerd-shim-trio-v2"


@pytest.fixture
def host_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "trio-shim.toml"
    path.write_text('[output]\npolicy = "spool"\nlimit = "1MiB"\nmax-limit = "2MiB"\n')
    monkeypatch.setenv(names.HOST_FILE_VARIABLE, str(path))
    return path


def annotated(**values: str) -> dict[str, dict[str, str]]:
    keys = {"policy": names.OUTPUT_POLICY, "limit": names.OUTPUT_LIMIT}
    return {"annotations": {keys[key]: value for key, value in values.items()}}


def test_the_files_policy_and_limit_are_shown_in_bytes(host_file: Path) -> None:
    assert output_of({}, SHIM) == Output("spool", 1 << 20, str(host_file))


def test_a_limit_by_annotation_applies_to_the_files_policy(host_file: Path) -> None:
    assert output_of(annotated(limit="2MiB"), SHIM) == Output("spool", 2 << 20, str(host_file))


def test_an_annotated_policy_has_the_files_limit(host_file: Path) -> None:
    assert output_of(annotated(policy="spool"), SHIM) == Output("spool", 1 << 20, "annotation")
    assert output_of(annotated(policy="drop"), SHIM) == Output("drop", None, "annotation")


def test_a_file_with_an_unknown_key_is_shown_with_the_error_of_create(host_file: Path) -> None:
    host_file.write_text('[output]\npolicy = "spool"\nlimits = "1MiB"\n')
    shown = output_of({}, SHIM)
    assert shown is not None
    assert (shown.policy, shown.limit, shown.source) == ("", None, str(host_file))
    assert f"{host_file}: 'output.limits' is unknown" in shown.problem


def test_an_annotation_beyond_the_files_limit_is_shown_with_its_error(host_file: Path) -> None:
    shown = output_of(annotated(policy="spool", limit="3MiB"), SHIM)
    assert shown is not None
    assert shown.policy == ""
    assert names.OUTPUT_LIMIT in shown.problem


@pytest.mark.usefixtures("host_file")
def test_another_shim_has_no_policy() -> None:
    assert output_of({}, "/usr/bin/containerd-shim-runc-v2") is None
