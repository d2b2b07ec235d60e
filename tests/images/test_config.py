from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidError
from shimctl.images import ImageConfig, Overrides, Volume
from shimctl.images.accounts import User
from shimctl.images.config import (
    PATH,
    command_of,
    environment_of,
    read_image_config,
    runtime_config,
)

WHAT = "oci:a:b"
IMAGE = ImageConfig(
    entrypoint=("/init",),
    command=("-v",),
    env=("A=1", "PATH=/bin"),
    working_dir="/srv",
    stop_signal="SIGINT",
    volumes=("/cache", "/data"),
    ports=("80/tcp",),
    labels={"by": "us"},
)


def config(
    overrides: Overrides, image: ImageConfig = IMAGE, *, v2: bool = False
) -> dict[str, Any]:
    return runtime_config(image, User(33, 34, (44,)), overrides, what=WHAT, cgroup_v2=v2)


def mount(found: dict[str, Any], place: str) -> dict[str, Any]:
    (one,) = [entry for entry in found["mounts"] if entry["destination"] == place]
    assert isinstance(one, dict)
    return one


@pytest.mark.parametrize(
    ("overrides", "args"),
    [
        (Overrides(), ["/init", "-v"]),
        (Overrides(args=["a", "b"]), ["/init", "a", "b"]),
        (Overrides(entrypoint=["sh"]), ["sh"]),
        (Overrides(entrypoint=["sh"], args=["-c"]), ["sh", "-c"]),
        (Overrides(entrypoint=[], args=["id"]), ["id"]),
    ],
)
def test_arguments_replace_the_command_and_an_entrypoint_both(
    overrides: Overrides, args: list[str]
) -> None:
    assert command_of(IMAGE, overrides, WHAT) == args


@pytest.mark.parametrize("overrides", [Overrides(), Overrides(entrypoint=[])])
def test_nothing_to_run_is_an_error_that_says_what_to_do(overrides: Overrides) -> None:
    with pytest.raises(InvalidError, match="oci:a:b has no command; give one after"):
        command_of(
            ImageConfig(command=("sh",) if overrides.entrypoint is not None else ()),
            overrides,
            WHAT,
        )


def test_the_last_word_on_a_variable_counts() -> None:
    overrides = Overrides(env=["A=2", "B="], hostname="box", terminal=True)
    assert environment_of(IMAGE, overrides) == [
        "PATH=/bin",
        "TERM=xterm",
        "HOSTNAME=box",
        "A=2",
        "B=",
    ]
    assert environment_of(ImageConfig(), Overrides()) == [PATH]


@pytest.mark.parametrize("entry", ["A", "=1", "", "A=\0"])
def test_what_is_no_variable_is_refused(entry: str) -> None:
    with pytest.raises(InvalidError, match="use NAME=VALUE"):
        environment_of(IMAGE, Overrides(env=[entry]))


def test_what_the_image_says_is_what_the_container_gets() -> None:
    found = config(Overrides())
    process = found["process"]
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [34, 44]}
    assert process["cwd"] == "/srv"
    assert found["root"] == {"path": "rootfs", "readonly": False}
    assert found["annotations"] == {
        "org.opencontainers.image.stopSignal": "SIGINT",
        "org.opencontainers.image.exposedPorts": "80/tcp",
        "by": "us",
    }
    assert mount(found, "/data")["source"] == "image/volumes/1"
    assert json.loads(json.dumps(found)) == found


def test_it_is_as_confined_as_one_of_docker() -> None:
    found = config(Overrides())
    held = found["process"]["capabilities"]
    assert set(held) == {"bounding", "effective", "permitted"}
    assert len(held["bounding"]) == 14
    assert "CAP_SYS_ADMIN" not in held["bounding"]
    assert {"/proc/kcore", "/sys/firmware"} <= set(found["linux"]["maskedPaths"])
    assert "/proc/sys" in found["linux"]["readonlyPaths"]
    assert "ro" in mount(found, "/sys")["options"]
    assert found["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    # Without CAP_SYS_RESOURCE none can be raised, so none is asked for.
    assert "rlimits" not in found["process"]
    assert "oomScoreAdj" not in found["process"]


def kinds(found: dict[str, Any]) -> set[str]:
    return {entry["type"] for entry in found["linux"]["namespaces"]}


def test_the_network_is_its_own_unless_it_is_the_hosts() -> None:
    alone, shared = config(Overrides()), config(Overrides(network=True))
    assert kinds(alone) == {"pid", "ipc", "uts", "mount", "network"}
    assert kinds(shared) == {"pid", "ipc", "uts", "mount"}
    assert mount(shared, "/etc/resolv.conf")["source"] == "image/resolv.conf"
    assert "cgroup" in kinds(config(Overrides(), v2=True))


def test_what_the_user_says_comes_before_the_image() -> None:
    found = config(
        Overrides(
            working_dir="/tmp",
            volumes=[Volume("/host", "/data/", read_only=True)],
            memory=1 << 20,
            cpus=1.5,
            pids=20,
            read_only=True,
            cgroup="/x",
        )
    )
    assert found["process"]["cwd"] == "/tmp"
    assert mount(found, "/data/") == {
        "destination": "/data/",
        "type": "bind",
        "source": "/host",
        "options": ["rbind", "rprivate", "ro"],
    }
    assert mount(found, "/cache")["options"][-1] == "rw"
    assert "/data" not in [entry["destination"] for entry in found["mounts"]]
    resources = found["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 20}
    assert found["root"]["readonly"] is True
    assert found["linux"]["cgroupsPath"] == "/x"


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (ImageConfig(command=("a",), working_dir="srv"), "the working directory 'srv' must begin"),
        (ImageConfig(command=("a",), volumes=("/",)), "volume '/' is not a path inside"),
        (ImageConfig(command=("a",), volumes=("data",)), "volume 'data' is not a path"),
        (ImageConfig(command=("a",), volumes=("/a/../../etc",)), "is not a path"),
    ],
)
def test_paths_that_make_no_sense_are_refused(image: ImageConfig, match: str) -> None:
    with pytest.raises(InvalidError, match=match):
        config(Overrides(), image)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("Entrypoint", "sh"), ("Cmd", {}), ("Cmd", [1]), ("Env", "A=1"), ("User", 0)),
        *(("WorkingDir", []), ("Volumes", ["/a"]), ("Labels", "x"), ("StopSignal", 9)),
    ],
)
def test_a_field_of_the_wrong_type_is_named(key: str, value: object) -> None:
    with pytest.raises(InvalidError, match=rf"oci:a:b: {key} is no"):
        read_image_config({"config": {key: value}}, WHAT)


def test_null_and_nothing_are_the_same() -> None:
    nothing = dict.fromkeys(("Entrypoint", "Cmd", "Env", "User", "Volumes", "Labels"))
    assert read_image_config({"config": nothing}, WHAT) == ImageConfig()
    assert read_image_config({"config": None}, WHAT) == ImageConfig()
    assert read_image_config({}, WHAT) == ImageConfig()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(["Entrypoint", "Cmd", "Env", "User", "WorkingDir", "Volumes", "Labels"])


@given(st.dictionaries(fields, json_values))
def test_any_json_makes_a_configuration_or_an_error(inner: dict[str, Any]) -> None:
    try:
        image = read_image_config({"config": inner}, WHAT)
        json.dumps(config(Overrides(args=["a"]), image))
    except InvalidError:
        pass
