"""What an operator may forbid, and that nothing is by default."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from support import build_request, running_server
from test_workers import start

from specgen.v1.specgen_pb2 import SpecOptions as SpecOptionsMessage
from specgen_client import RequestRefused, SpecClient, SpecgenError
from specgen_core import SpecOptions, read_request
from specgen_server.policy import Denied, Policy
from tvix.castore.protos.castore_pb2 import Node

EVERYTHING = {
    "constraints": {
        "system": "x86_64-linux",
        "available_ro_paths": ["/dev/kvm", "/etc/ssl/certs"],
        "network_access": True,
        "provide_bin_sh": True,
    }
}
OWN = SpecOptions()


def denied(policy: Policy, options: SpecOptions = OWN) -> list[str]:
    """Return the fields that a policy denies of a request for everything."""
    try:
        policy.check(read_request(build_request(**EVERYTHING)), options, OWN)
    except Denied as error:
        return [violation.field for violation in error.violations]
    return []


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        pytest.param(Policy(), [], id="default"),
        pytest.param(Policy(deny_network=True), ["constraints.network_access"], id="network"),
        pytest.param(Policy(deny_host_shell=True), ["constraints.provide_bin_sh"], id="host_shell"),
        pytest.param(
            Policy(allow_ro_paths=("/dev/*",)),
            ["constraints.available_ro_paths[1]"],
            id="star_in_a_segment",
        ),
        pytest.param(
            Policy(allow_ro_paths=("/*",)),
            ["constraints.available_ro_paths[0]", "constraints.available_ro_paths[1]"],
            id="star_does_not_cross_slashes",
        ),
        pytest.param(Policy(allow_ro_paths=("/dev/kvm", "/etc/ssl/*")), [], id="all_allowed"),
    ],
)
def test_check(policy: Policy, fields: list[str]) -> None:
    assert denied(policy) == fields


def test_a_symlink_input_is_a_way_around_the_allowed_paths() -> None:
    link = Node(symlink={"name": b"passwd", "target": b"/etc/passwd"})
    request = read_request(build_request(inputs=[link]))
    Policy().check(request, OWN, OWN)
    with pytest.raises(Denied) as denied:
        Policy(allow_ro_paths=("/dev/*",)).check(request, OWN, OWN)
    assert [violation.field for violation in denied.value.violations] == ["inputs[0].symlink"]


def test_a_glob_starts_with_a_slash() -> None:
    ended = start("--listen", "127.0.0.1:0", "--allow-ro-path", "kvm")
    assert ended.returncode == 2
    assert "--allow-ro-path 'kvm': it must start with a slash" in ended.stderr


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    "flag", ["--allow-ro-path", "--deny-network", "--deny-host-shell", "--no-option-overrides"]
)
def test_an_empty_variable_forbids_nothing_and_is_an_error(
    monkeypatch: pytest.MonkeyPatch, flag: str, value: str
) -> None:
    variable = f"SPECGEN_{flag[2:].upper().replace('-', '_')}"
    monkeypatch.setenv(variable, value)
    ended = start("--listen", "127.0.0.1:0")
    assert ended.returncode == 2
    said = f"{variable} is empty: give it a value, or unset it to go without {flag}"
    assert " ".join(ended.stderr.split()).endswith(said)


def test_globs_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECGEN_ALLOW_RO_PATH", "/dev/* /etc/ssl/*")
    monkeypatch.setenv("SPECGEN_DENY_NETWORK", "false")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", "--workers", "1") as server,
        SpecClient(server.address) as client,
    ):
        assert client.generate(build_request(**EVERYTHING)).json
        with pytest.raises(RequestRefused):
            client.generate(
                build_request(
                    constraints={"system": "x86_64-linux", "available_ro_paths": ["/etc"]}
                )
            )


@pytest.mark.parametrize(
    ("shell", "fields"),
    [
        pytest.param("/bin/sh", [], id="the_servers_own"),
        pytest.param("/dev/kvm", [], id="allowed"),
        pytest.param("/etc/shadow", ["options.sandbox_shell"], id="not_allowed"),
        pytest.param("/dev/../etc/shadow", ["options.sandbox_shell"], id="dotdot"),
    ],
)
def test_a_callers_shell_is_a_host_path(shell: str, fields: list[str]) -> None:
    policy = Policy(allow_ro_paths=("/dev/*", "/dev/*/*/*", "/etc/ssl/certs"))
    assert denied(policy, SpecOptions(sandbox_shell=shell)) == fields


def test_a_denied_call(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--deny-network", "--allow-ro-path", "/dev/*")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        SpecClient(server.address) as client,
    ):
        with pytest.raises(RequestRefused) as refused:
            client.generate(build_request(**EVERYTHING))
        (in_bulk,) = client.generate_many([build_request(**EVERYTHING)])
        assert client.generate(build_request()).json
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
    fields = ["constraints.available_ro_paths[1]", "constraints.network_access"]
    assert [violation.field for violation in refused.value.violations] == fields
    assert isinstance(in_bulk, SpecgenError)
    assert in_bulk.code is grpc.StatusCode.PERMISSION_DENIED


def test_no_option_overrides(tmp_path: Path) -> None:
    flags = ("--workers", "1", "--no-option-overrides")
    with (
        running_server("127.0.0.1:0", tmp_path / "log", *flags) as server,
        SpecClient(server.address) as client,
    ):
        with pytest.raises(RequestRefused) as refused:
            client.generate(build_request(), options=SpecOptionsMessage(rootless=False))
        rootful = SpecOptionsMessage(rootless=False)
        (in_bulk,) = client.generate_many([build_request()], options=rootful)
        # the server's own options, said once more, change nothing
        assert client.generate(build_request(), options=SpecOptionsMessage(rootless=True)).json
    assert isinstance(in_bulk, RequestRefused)
    assert refused.value.code is in_bulk.code is grpc.StatusCode.PERMISSION_DENIED
    assert refused.value.violations[0].field == "specgen-options"
    assert in_bulk.violations[0].field == "options"
