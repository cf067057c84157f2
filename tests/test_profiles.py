"""Profiles and their options: what they make of a spec, and that unset is the seed's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import pytest
from support import GOLDEN, GOLDEN_NAMES, TESTS, build_request, golden_case
from test_golden import with_sorted_capabilities

from specgen_client.proto_json import request_from_json
from specgen_core import (
    IdMapping,
    InvalidRequest,
    Nofile,
    Resources,
    SpecOptions,
    UnreadableMessage,
    generate,
)
from specgen_core.profiles import PROFILES


def spec_of(options: SpecOptions, **fields: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(generate(build_request(**fields), options).json)
    return spec


# --- snix -----------------------------------------------------------------------------

AS_SNIX = SpecOptions().override(
    profile="snix",
    sandbox_shell="/usr/lib/specgen/sandbox-shell",
    uid_mappings=(IdMapping(0, 0, 1), IdMapping(1000, 100_000, 1)),
    gid_mappings=(IdMapping(0, 0, 1), IdMapping(100, 200_000, 1)),
)


def with_sorted_ro_mounts(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec with its read-only binds in one order: snix keeps them in a hash set."""
    mounts = spec["mounts"]
    at = [i for i, mount in enumerate(mounts) if mount.get("options") == ["rbind", "ro"]]
    in_order = sorted((mounts[i] for i in at), key=lambda mount: mount["destination"])
    for i, mount in zip(at, in_order):
        mounts[i] = mount
    return spec


def test_snix_is_what_its_own_code_makes() -> None:
    with gzip.open(GOLDEN / "snix_bulk.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    differing = []
    for i, row in enumerate(rows):
        spec = json.loads(generate(base64.b64decode(row["request_base64"]), AS_SNIX).json)
        spec = with_sorted_ro_mounts(with_sorted_capabilities(spec))
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if hashlib.sha256(text.encode()).hexdigest() != row["snix_sha256"]:
            differing.append(i)

    assert len(rows) == 162
    assert differing == []


UPSTREAM = json.loads((TESTS / "upstream_cases.json").read_text())


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in UPSTREAM])
def test_upstream_case(case: dict[str, Any]) -> None:
    """The cases of snix's own unit tests answer as they say there."""
    request = request_from_json(json.dumps(case["request"]))
    expect: str = case["expect"]
    if expect.startswith("refused:"):
        with pytest.raises((InvalidRequest, UnreadableMessage)) as refused:
            generate(request, SpecOptions())
        assert refused.value.violations[0].field == expect.removeprefix("refused:")
        return
    answer = generate(request, SpecOptions())
    if expect == "output_paths":
        scratch = {f"<scratch {found.path}>": found.bundle_path for found in answer.scratch_dirs}
        expected = []
        for output in case["outputs"]:
            place, _, below = output.partition(">/")
            expected.append(f"{scratch[place + '>']}/{below}")
        assert [found.bundle_path for found in answer.output_paths] == expected


def test_all_upstream_cases_are_there() -> None:
    assert len(UPSTREAM) == 60


# --- each option, and profiles as their sums ------------------------------------------

SEED = SpecOptions()


def test_unset_is_the_seed() -> None:
    assert SEED.override() == SEED.override(profile="seed") == SEED


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if not name.startswith("real_c")])
def test_profile_seed_is_the_seed_to_the_byte(name: str) -> None:
    request = golden_case(name).request
    asked = SEED.override(profile="nix").override(profile="seed")

    assert (
        generate(request, asked).SerializeToString() == generate(request, SEED).SerializeToString()
    )


@pytest.mark.parametrize(
    ("given", "path", "expected"),
    [
        pytest.param(
            {"nofile": Nofile(65_536, 1_048_576)},
            "process.rlimits",
            [{"type": "RLIMIT_NOFILE", "hard": 1_048_576, "soft": 65_536}],
            id="nofile",
        ),
        pytest.param({"nofile": Nofile(0, 0)}, "process.rlimits", None, id="no_nofile"),
        pytest.param(
            {"drop_capabilities": True},
            "process.capabilities",
            {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            id="drop_capabilities",
        ),
        pytest.param(
            {"tmp_mode": "1777"},
            "mounts.7.options",
            ["nosuid", "noatime", "mode=1777"],
            id="tmp_mode",
        ),
        pytest.param({"device_rules": "none"}, "linux.resources.devices", [], id="device_rules"),
        pytest.param(
            {"resources": Resources(memory_bytes=1 << 30)},
            "linux.resources.memory",
            {"limit": 1 << 30},
            id="memory",
        ),
        pytest.param(
            {"resources": Resources(cpu_quota_us=50_000, cpu_period_us=100_000)},
            "linux.resources.cpu",
            {"quota": 50_000, "period": 100_000},
            id="cpu",
        ),
        pytest.param(
            {"resources": Resources(cpu_quota_us=50_000)},
            "linux.resources.cpu",
            {"quota": 50_000},
            id="cpu_quota",
        ),
        pytest.param(
            {"resources": Resources(pids=512)}, "linux.resources.pids", {"limit": 512}, id="pids"
        ),
        pytest.param(
            {"cgroups_path": "/builds/x"}, "linux.cgroupsPath", "/builds/x", id="cgroups_path"
        ),
        pytest.param({}, "linux.cgroupsPath", None, id="no_cgroups_path"),
        pytest.param({}, "linux.seccomp", None, id="no_seccomp"),
        pytest.param({}, "linux.personality", None, id="no_personality"),
        pytest.param({"personality": "system"}, "linux.personality", None, id="of_64_bits"),
    ],
)
def test_option(given: dict[str, Any], path: str, expected: Any) -> None:
    found: Any = spec_of(SEED.override(**given))
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found.get(key)

    assert found == expected


KVM = {"allow": True, "type": "c", "major": 10, "minor": 232, "access": "rw"}
DENY = {"allow": False, "access": "rwm"}


@pytest.mark.parametrize(
    ("devices", "ro_paths", "rules"),
    [
        pytest.param(["/dev/kvm"], ["/dev/kvm"], [DENY, KVM], id="known"),
        pytest.param(["/dev/kvm"], ["/dev/fuse"], [DENY], id="not_asked_for"),
        pytest.param([], ["/dev/kvm"], [DENY], id="not_allowed"),
        pytest.param(
            ["/dev/kvm", "/dev/sdx:b:8:16:r"],
            ["/dev/sdx", "/dev/kvm"],
            [DENY, KVM, {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "r"}],
            id="by_number",
        ),
    ],
)
def test_devices(devices: list[str], ro_paths: list[str], rules: list[Any]) -> None:
    constraints = {"system": "x86_64-linux", "available_ro_paths": ro_paths}
    spec = spec_of(SEED.override(devices=devices), constraints=constraints)

    assert spec["linux"]["resources"]["devices"] == rules


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        pytest.param("i686-linux", {"domain": "LINUX32"}, id="i686"),
        pytest.param("armv5tel-linux", {"domain": "LINUX32"}, id="armv5tel"),
        pytest.param("armv6l-linux", {"domain": "LINUX32"}, id="armv6l"),
        pytest.param("armv7l-linux", {"domain": "LINUX32"}, id="armv7l"),
        pytest.param("x86_64-linux", None, id="x86_64"),
        pytest.param("aarch64-linux", None, id="aarch64"),
        pytest.param("i686-darwin", None, id="darwin"),
    ],
)
def test_personality(system: str, expected: Any) -> None:
    spec = spec_of(SEED.override(personality="system"), constraints={"system": system})

    assert spec["linux"].get("personality") == expected


@pytest.mark.parametrize(
    ("system", "architectures"),
    [
        pytest.param("x86_64-linux", ["X86_64", "X86", "X32"], id="x86_64"),
        pytest.param("i686-linux", ["X86_64", "X86", "X32"], id="i686"),
        pytest.param("aarch64-linux", ["AARCH64", "ARM"], id="aarch64"),
        pytest.param("armv7l-linux", ["AARCH64", "ARM"], id="armv7l"),
        pytest.param("riscv64-linux", None, id="its_own_alone"),
    ],
)
def test_seccomp_covers_the_architectures_of_the_host(system: str, architectures: Any) -> None:
    spec = spec_of(SEED.override(seccomp="nix"), constraints={"system": system})

    found = spec["linux"]["seccomp"].get("architectures")
    assert found == (architectures and [f"SCMP_ARCH_{name}" for name in architectures])


def test_seccomp() -> None:
    seccomp = spec_of(SEED.override(seccomp="nix"))["linux"]["seccomp"]

    def bit(index: int, mode: int) -> list[dict[str, Any]]:
        return [{"index": index, "value": mode, "valueTwo": mode, "op": "SCMP_CMP_MASKED_EQ"}]

    assert seccomp["defaultAction"] == "SCMP_ACT_ALLOW"
    assert seccomp["syscalls"] == [
        *(
            {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": bit(index, mode)}
            for mode in (0o4000, 0o2000)
            for names, index in ((["chmod", "fchmod"], 1), (["fchmodat", "fchmodat2"], 2))
        ),
        {
            "names": [
                *("listxattr", "llistxattr", "flistxattr"),
                *("getxattr", "lgetxattr", "fgetxattr"),
                *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
            ],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 95,
        },
    ]


def test_what_is_set_besides_a_profile_wins() -> None:
    options = SEED.override(profile="nix", tmp_mode="700", seccomp="none")

    assert (options.tmp_mode, options.seccomp) == ("700", "none")
    assert options.drop_capabilities is PROFILES["nix"].drop_capabilities is True


def test_a_profile_replaces_what_the_server_said_of_it_and_nothing_else() -> None:
    server = SEED.override(
        profile="nix", rootless=False, terminal=False, resources=Resources(pids=9)
    )

    options = server.override(profile="snix")

    assert options == SpecOptions(
        rootless=False,
        terminal=False,
        resources=Resources(pids=9),
        cgroup_namespace=False,
        device_rules="none",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(Resources(), Resources(1 << 30, 5000, 10_000, 9), id="none"),
        pytest.param(Resources(pids=7), Resources(1 << 30, 5000, 10_000, 7), id="pids"),
        pytest.param(
            Resources(memory_bytes=1 << 31), Resources(1 << 31, 5000, 10_000, 9), id="memory"
        ),
        pytest.param(Resources(cpu_quota_us=7000), Resources(1 << 30, 7000, 0, 9), id="quota"),
        pytest.param(Resources(cpu_period_us=7000), Resources(1 << 30, 0, 7000, 9), id="period"),
    ],
)
def test_a_limit_of_the_server_stays_until_another_is_given(
    given: Resources, expected: Resources
) -> None:
    server = SEED.override(resources=Resources(1 << 30, 5000, 10_000, 9))

    assert server.override(resources=given).resources == expected


def test_a_profile_that_is_none() -> None:
    with pytest.raises(InvalidRequest) as refused:
        SEED.override(profile="guix")  # type: ignore[arg-type]

    assert str(refused.value) == 'options.profile: must be one of seed, snix, nix, is "guix"'
