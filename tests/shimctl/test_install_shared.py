"""The man pages and completions that ``shimctl install`` writes below PREFIX/share."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shimctl.cli.shared import COMPLETIONS, MAN, shared_files
from shimctl.host.install import install, uninstall

FILES = {f"{MAN}/shimctl-old.1": "old\n", COMPLETIONS["zsh"]: "#compdef shimctl\n"}


def texts_in(share: Path) -> dict[str, str]:
    return {
        str(path.relative_to(share)): path.read_text()
        for path in share.rglob("*")
        if path.is_file()
    }


async def test_the_files_are_written_for_every_user_and_removed_with_shimctl(
    tmp_path: Path,
) -> None:
    done = await install(tmp_path, native=False, shared=FILES)
    share = tmp_path / "share"
    assert done.shared == tuple(str(share / name) for name in FILES)
    for name, text in texts_in(share).items():
        assert text.startswith(FILES[name])
        assert stat.S_IMODE((share / name).stat().st_mode) == 0o644
        assert stat.S_IMODE((share / name).parent.stat().st_mode) == 0o755
    # Another shim in the same place needs shimctl still.
    await install(tmp_path, name="containerd-shim-other-v1", native=False, shared=FILES)
    assert uninstall(tmp_path, shared=FILES).shared == ()
    assert texts_in(share).keys() == FILES.keys()
    gone = uninstall(tmp_path, name="containerd-shim-other-v1", shared=FILES)
    assert sorted(gone.shared) == sorted(done.shared)
    assert texts_in(share) == {}


async def test_a_page_of_a_command_that_no_longer_exists_is_removed(tmp_path: Path) -> None:
    await install(tmp_path, native=False, shared=FILES)
    fresh = {f"{MAN}/shimctl-new.1": "new\n"}
    await install(tmp_path, native=False, shared=fresh)
    # A directory of which the new version has no file is left alone.
    assert texts_in(tmp_path / "share").keys() == {*fresh, COMPLETIONS["zsh"]}


async def test_a_file_of_another_installer_is_neither_replaced_nor_removed(
    tmp_path: Path,
) -> None:
    same, other = FILES
    for name, text in ((same, FILES[same]), (other, "another version\n")):
        path = tmp_path / "share" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    before = texts_in(tmp_path / "share")
    done = await install(tmp_path, native=False, shared=FILES)
    assert done.shared == ()
    assert done.remark.startswith("1 file below")
    assert str(tmp_path / "share" / other) in done.remark
    assert uninstall(tmp_path, shared=FILES).shared == ()
    assert texts_in(tmp_path / "share") == before


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command writes."""
    prefix = tmp_path_factory.mktemp("prefix")
    command = [sys.executable, "-m", "shimctl", "install", "--no-native", "--prefix", str(prefix)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert f"{prefix}/share/zsh/site-functions (1 file)" in done.stdout
    assert texts_in(prefix / "share").keys() == shared_files().keys()
    return prefix / "share"


def output_of(*command: str, **environ: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}; tests/run.sh installs it")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environ or None
    )
    assert done.stderr == ""
    return done.stdout


def test_each_shell_loads_the_installed_script(share: Path) -> None:
    bash = f"source {share}/{COMPLETIONS['bash']}; complete -p shimctl"
    assert "shimctl" in output_of("bash", "--norc", "-c", bash)
    zsh = f"fpath=({share}/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D; "
    assert "_shimctl" in output_of("zsh", "-f", "-c", f"{zsh}print $_comps[shimctl]")
    fish = output_of(
        *("fish", "-c", "complete -C 'shimctl --vers'"),
        XDG_DATA_DIRS=str(share),
        PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin",
        HOME=str(share),
    )
    assert fish.startswith("--version")
