"""SpecOptions: defaults, what cannot be, and how one set overrides another."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from support import build_request

from specgen_commands.option_flags import FiniteRange
from specgen_core import IdMapping, InvalidRequest, Nofile, Resources, SpecOptions
from specgen_core.answer import generate

LAST_ID = 2**32 - 2
MAPPED = SpecOptions(uid_mappings=(IdMapping(0, 1000, 1),), gid_mappings=(IdMapping(0, 100, 1),))
DEVICE = (
    "must be one of /dev/kvm, /dev/fuse, /dev/net/tun, or PATH:TYPE:MAJOR:MINOR:ACCESS such as "
    "/dev/kvm:c:10:232:rw"
)
FOR_ROOTFUL = (
    "must be empty for a rootful spec, which has no user namespace: leave them out, or set rootless"
)


def test_defaults_are_those_of_the_seed() -> None:
    assert SpecOptions() == SpecOptions(
        rootless=True,
        sandbox_shell="/bin/sh",
        terminal=True,
        cgroup_namespace=True,
        uid_mappings=(),
        gid_mappings=(),
    )


@pytest.mark.parametrize(
    ("given", "violations"),
    [
        pytest.param(
            {"sandbox_shell": ""},
            [
                (
                    "options.sandbox_shell",
                    "must be a path on the host, not empty, without a NUL byte",
                )
            ],
            id="shell_empty",
        ),
        pytest.param(
            {"sandbox_shell": "/a\0"},
            [
                (
                    "options.sandbox_shell",
                    "must be a path on the host, not empty, without a NUL byte",
                )
            ],
            id="shell_nul",
        ),
        pytest.param(
            {"rootless": False, "uid_mappings": (IdMapping(0, 0, 1),)},
            [("options.uid_mappings", FOR_ROOTFUL)],
            id="uids_for_rootful",
        ),
        pytest.param(
            {"rootless": False, "gid_mappings": (IdMapping(0, 0, 1),)},
            [("options.gid_mappings", FOR_ROOTFUL)],
            id="gids_for_rootful",
        ),
        pytest.param(
            {"uid_mappings": (IdMapping(0, 0, 1), IdMapping(5, 5, 0))},
            [("options.uid_mappings[1].size", "must be at least 1")],
            id="size_0",
        ),
        pytest.param(
            {"uid_mappings": (IdMapping(LAST_ID, 0, 2),)},
            [
                (
                    "options.uid_mappings[0].container_id",
                    "must stay below 4294967295, with its size",
                )
            ],
            id="container_ids_beyond_32_bits",
        ),
        pytest.param(
            {"gid_mappings": (IdMapping(0, LAST_ID, 2),)},
            [("options.gid_mappings[0].host_id", "must stay below 4294967295, with its size")],
            id="host_ids_beyond_32_bits",
        ),
        pytest.param(
            {"uid_mappings": (IdMapping(-1, 0, 1),)},
            [
                (
                    "options.uid_mappings[0].container_id",
                    "must stay below 4294967295, with its size",
                )
            ],
            id="negative",
        ),
        pytest.param(
            {"uid_mappings": (IdMapping(5, 0, 2), IdMapping(0, 10, 6))},
            [
                (
                    "options.uid_mappings[1].container_id",
                    "must not overlap with options.uid_mappings[0]",
                )
            ],
            id="overlap_in_the_sandbox",
        ),
        pytest.param(
            {"uid_mappings": (IdMapping(0, 10, 6), IdMapping(10, 15, 1))},
            [
                (
                    "options.uid_mappings[1].host_id",
                    "must not overlap with options.uid_mappings[0]",
                )
            ],
            id="overlap_on_the_host",
        ),
        pytest.param(
            {"uid_mappings": tuple(IdMapping(i, i, 1) for i in range(341))},
            [("options.uid_mappings", "must be at most 340, the kernel takes no more")],
            id="more_lines_than_the_kernel_takes",
        ),
        pytest.param(
            {"sandbox_shell": "", "rootless": False, "uid_mappings": (IdMapping(0, 0, 0),)},
            [
                (
                    "options.sandbox_shell",
                    "must be a path on the host, not empty, without a NUL byte",
                ),
                ("options.uid_mappings", FOR_ROOTFUL),
                ("options.uid_mappings[0].size", "must be at least 1"),
            ],
            id="all_at_once",
        ),
        pytest.param(
            {"nofile": Nofile(10, 5)},
            [("options.nofile.soft", "must be 1 to 5, the hard limit, is 10")],
            id="nofile_soft_above_hard",
        ),
        pytest.param(
            {"nofile": Nofile(10, 0)},
            [("options.nofile.soft", "must be 0 where the hard limit is, is 10")],
            id="nofile_soft_without_hard",
        ),
        pytest.param(
            {"nofile": Nofile(1, 2**31)},
            [("options.nofile.hard", "must be 0 for none, or at most 1073741824")],
            id="nofile_too_many",
        ),
        pytest.param(
            {"tmp_mode": "0o700"},
            [("options.tmp_mode", 'must be a mode in octal digits such as 1777, is "0o700"')],
            id="tmp_mode",
        ),
        pytest.param(
            {"tmp_mode": "4755"},
            [("options.tmp_mode", 'must be a mode in octal digits such as 1777, is "4755"')],
            id="tmp_mode_setuid",
        ),
        pytest.param(
            {"devices": ("/dev/kvm", "/dev/nothing", "/dev/x:q:1:2:rw")},
            [
                (f"options.devices[{i}]", f'{DEVICE}, is "{device}"')
                for i, device in ((1, "/dev/nothing"), (2, "/dev/x:q:1:2:rw"))
            ],
            id="devices",
        ),
        pytest.param(
            {"devices": ("/dev/kvm",) * 101},
            [("options.devices", "must be at most 100")],
            id="devices_too_many",
        ),
        pytest.param(
            {"device_rules": "allow", "seccomp": "yes", "personality": ""},
            [
                ("options.device_rules", 'must be one of deny, none, is "allow"'),
                ("options.seccomp", 'must be one of none, nix, is "yes"'),
                ("options.personality", 'must be one of none, system, is ""'),
            ],
            id="choices",
        ),
        pytest.param(
            {"resources": Resources(1, 1, 2_000_000, 0)},
            [
                (
                    "options.resources.memory_bytes",
                    "must be 0 for none, or 4096 to 9223372036854775807, is 1",
                ),
                (
                    "options.resources.cpu_quota_us",
                    "must be 0 for none, or 1000 to 9223372036854775807, is 1",
                ),
                (
                    "options.resources.cpu_period_us",
                    "must be 0 for none, or 1000 to 1000000, is 2000000",
                ),
            ],
            id="resources",
        ),
        pytest.param(
            {"cgroups_path": "/a/../b\0"},
            [
                ("options.cgroups_path", "must not contain a NUL byte"),
                ("options.cgroups_path", 'must not have ".." as a segment'),
            ],
            id="cgroups_path",
        ),
    ],
)
def test_refused(given: dict[str, Any], violations: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SpecOptions(**given)

    assert [(v.field, v.description) for v in refused.value.violations] == violations


@pytest.mark.parametrize(
    "mappings",
    [
        pytest.param((IdMapping(0, 0, 2**32 - 1),), id="all_ids"),
        pytest.param((IdMapping(LAST_ID, LAST_ID, 1),), id="last_id"),
        pytest.param((IdMapping(5, 5, 1), IdMapping(0, 0, 5), IdMapping(6, 6, 1)), id="adjacent"),
        pytest.param(tuple(IdMapping(i, i, 1) for i in range(340)), id="340_lines"),
    ],
)
def test_accepted_mappings(mappings: tuple[IdMapping, ...]) -> None:
    assert SpecOptions(uid_mappings=mappings, gid_mappings=mappings).uid_mappings == mappings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, MAPPED, id="nothing"),
        pytest.param({"uid_mappings": (), "gid_mappings": []}, MAPPED, id="empty_is_nothing"),
        pytest.param(
            {"terminal": False, "cgroup_namespace": False},
            SpecOptions(
                terminal=False,
                cgroup_namespace=False,
                uid_mappings=MAPPED.uid_mappings,
                gid_mappings=MAPPED.gid_mappings,
            ),
            id="false_is_something",
        ),
        pytest.param(
            {"uid_mappings": [IdMapping(0, 7, 1)]},
            SpecOptions(uid_mappings=(IdMapping(0, 7, 1),), gid_mappings=MAPPED.gid_mappings),
            id="mappings_are_replaced_whole",
        ),
        pytest.param(
            {"rootless": False}, SpecOptions(rootless=False), id="rootful_leaves_mappings_behind"
        ),
        pytest.param(
            {"sandbox_shell": "/x"},
            SpecOptions(
                sandbox_shell="/x",
                uid_mappings=MAPPED.uid_mappings,
                gid_mappings=MAPPED.gid_mappings,
            ),
            id="shell",
        ),
    ],
)
def test_override(given: dict[str, Any], expected: SpecOptions) -> None:
    assert MAPPED.override(**given) == expected


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"sandbox_shell": ""}, id="empty_shell_is_not_the_default"),
        pytest.param({"rootless": False, "uid_mappings": (IdMapping(0, 0, 1),)}, id="own_mappings"),
    ],
)
def test_override_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        MAPPED.override(**given)


@pytest.mark.parametrize(
    ("container_id", "covered"), [(9, False), (10, True), (14, True), (15, False)]
)
def test_covers(container_id: int, covered: bool) -> None:
    assert IdMapping(10, 100, 5).covers(container_id) is covered


# --- what they do to the spec ---------------------------------------------------------


def spec(options: SpecOptions) -> Any:
    return json.loads(generate(build_request(), options).json)


def test_mappings_in_the_spec() -> None:
    linux = spec(MAPPED)["linux"]

    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 100, "size": 1}]


def test_no_mappings_no_keys() -> None:
    assert {"uidMappings", "gidMappings"}.isdisjoint(spec(SpecOptions())["linux"])


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_in_the_spec(terminal: bool) -> None:
    assert spec(SpecOptions(terminal=terminal))["process"]["terminal"] is terminal


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(
            SpecOptions(), ["pid", "ipc", "uts", "mount", "cgroup", "network", "user"], id="all"
        ),
        pytest.param(
            SpecOptions(rootless=False, cgroup_namespace=False),
            ["pid", "ipc", "uts", "mount", "network"],
            id="rootful_without_cgroup",
        ),
    ],
)
def test_namespaces_in_the_spec(options: SpecOptions, expected: list[str]) -> None:
    namespaces = spec(options)["linux"]["namespaces"]

    assert [namespace["type"] for namespace in namespaces] == expected


@pytest.mark.parametrize("text", ["nan", "inf", "-nan", "1e999"])
def test_what_is_no_number_is_in_no_range(text: str) -> None:
    with pytest.raises(click.BadParameter):
        FiniteRange(min=0).convert(text, None, None)
