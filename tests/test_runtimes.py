"""Builds on real runtimes, from a request to the output: runc and crun, as root and not.

Every test runs in six ways: see runtimes.py.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from runtimes import (
    CRUN,
    EVERY_WAY,
    RUNC,
    SHELL,
    Lab,
    Mode,
    Runtime,
    new_lab,
    nodes,
    require_runtime,
    run,
    script,
    specgen,
)
from support import build_request, file, require

from specgen_client.placing import MARKER
from specgen_core import scratch_path
from tvix.build.protos.build_pb2 import BuildRequest

every_way = pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


def build(
    lab: Lab, runtime: Runtime, mode: Mode, text: str, *flags: str | Path, **fields: Any
) -> Path:
    """Build a request whose command is a shell script, and return its bundle."""
    request, inputs = scripted(lab, text, **fields)
    bundle = lab.bundle(mode, request, "--inputs", inputs, *flags)
    outcome = run(runtime, mode, bundle)
    assert outcome.exit_code == 0, outcome.output
    return bundle


def scripted(lab: Lab, text: str, **fields: Any) -> tuple[BuildRequest, Path]:
    inputs = lab.inputs()
    request = build_request(**(script(text) | {"inputs": nodes(inputs)} | fields))
    return request, inputs


def at(bundle: Path, path: str, scratch: str = "nix/store") -> Path:
    """Return where a path of the sandbox lies in a bundle."""
    return bundle / scratch_path(scratch) / Path(path).relative_to(scratch)


BUILD = """
test "$(id -u):$(id -g)" = 1000:100
cat /nix/store/greeting > /build/copy
cp /build/copy /nix/store/out
! touch /nix/store/greeting
! touch /nix/store/dir/new
! touch /new
! mkdir /etc/new
test "$(busybox stat -c %a:%u /tmp)" = 700:0
cat > /build/facts <<END
{"interfaces": "$(ls /proc/sys/net/ipv4/conf)", "shell": "$(sha256sum < /bin/sh)",
 "network": "$(readlink /proc/self/ns/net)", "passwd": "$(id -un):$(id -gn)",
 "home": "$HOME", "cwd": "$(pwd)"}
END
"""


@every_way
@pytest.mark.parametrize("network", [False, True], ids=["no_network", "network"])
def test_build(runtime: Runtime, mode: Mode, network: bool, lab: Lab) -> None:
    require_runtime(runtime, mode)
    if network:
        for name in ("resolv.conf", "services", "hosts"):
            require((Path("/etc") / name).exists(), f"/etc/{name}")
    inputs = lab.inputs(greeting="hello\n", dir={"file": "a file\n"})

    fields = script(BUILD, network_access=network)
    bundle = build(lab, runtime, mode, BUILD, **fields, inputs=nodes(inputs))

    assert at(bundle, "nix/store/out").read_text() == "hello\n"
    assert at(bundle, "build/copy", "build").read_text() == "hello\n"
    facts = json.loads(at(bundle, "build/facts", "build").read_text(), strict=False)
    assert facts["shell"].split()[0] == sha256(Path(SHELL).read_bytes()).hexdigest()
    assert facts["passwd"] == "nixbld:nixbld"
    assert facts["home"] == facts["cwd"] == "/build"
    here = str(Path("/proc/self/ns/net").readlink())
    if network:
        assert facts["network"] == here
        interfaces = Path("/proc/sys/net/ipv4/conf").iterdir()
        assert facts["interfaces"].split() == sorted(path.name for path in interfaces)
    else:
        assert facts["network"] != here
        assert facts["interfaces"].split() == ["all", "default", "lo"]
    assert sorted(p.name for p in (inputs / "dir").iterdir()) == ["file"]


@every_way
def test_terminal(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    request, inputs = scripted(lab, "test -t 0 && test -t 1 && echo on a terminal > /build/said")

    bundle = lab.bundle(mode, request, "--inputs", inputs, "--terminal")
    outcome = run(runtime, mode, bundle, tty=True)

    assert outcome.exit_code == 0, outcome.output
    assert at(bundle, "build/said", "build").read_text() == "on a terminal\n"


@every_way
def test_copied_inputs(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    closed = lab.inputs(closed={"file": "read me\n"})
    (closed / "closed/file").chmod(0o400)
    if mode is Mode.UNPRIVILEGED:
        os.chown(closed / "closed/file", *owner_of(lab))

    bundle = build(
        lab, runtime, mode, "cat /nix/store/closed/file > /nix/store/out", "--copy-inputs",
        inputs=nodes(closed),
    )  # fmt: skip

    assert at(bundle, "nix/store/out").read_text() == "read me\n"
    assert not (bundle / "inputs").is_symlink()
    assert (bundle / "inputs/tools/cat").readlink() == Path("busybox")


def owner_of(lab: Lab) -> tuple[int, int]:
    status = (lab.path / "builds").stat()
    return status.st_uid, status.st_gid


@every_way
def test_scratch_in_scratch(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    text = """
    for directory in /build /build/a /build/a/b /build/a/b/c /build/sub; do
      echo "in $directory" > $directory/file
    done
    """

    bundle = build(
        lab, runtime, mode, text,
        scratch_paths=["build", "build/a/b/c", "build/sub", "build/sub"], working_dir="build/a",
        outputs=["build/a/b/c/file", "build/file"],
    )  # fmt: skip

    assert at(bundle, "build/file", "build").read_text() == "in /build\n"
    assert at(bundle, "build/a/b/file", "build").read_text() == "in /build/a/b\n"
    assert at(bundle, "build/a/b/c/file", "build/a/b/c").read_text() == "in /build/a/b/c\n"
    assert at(bundle, "build/sub/file", "build/sub").read_text() == "in /build/sub\n"


@every_way
def test_outputs(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    """Several: a file, a directory that cannot be written to, and a link."""
    require_runtime(runtime, mode)
    text = """
    echo a file > /nix/store/out
    mkdir -p /nix/store/out-dev/include
    echo a header > /nix/store/out-dev/include/a.h
    busybox chmod -R a-w /nix/store/out-dev
    ln -s out /nix/store/out-link
    """
    outputs = ["nix/store/out", "nix/store/out-dev", "nix/store/out-link"]

    bundle = build(lab, runtime, mode, text, outputs=outputs)

    assert at(bundle, "nix/store/out").read_text() == "a file\n"
    assert at(bundle, "nix/store/out-dev/include/a.h").read_text() == "a header\n"
    assert at(bundle, "nix/store/out-link").readlink() == Path("out")
    assert at(bundle, "nix/store/out").stat().st_uid == build_uid(bundle)


def build_uid(bundle: Path) -> int:
    return (bundle / scratch_path("nix/store")).stat().st_uid


@every_way
def test_unicode_names(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    inputs = lab.inputs(**{"ä ö\t'\"$x\\": "one\n", "日本": {"語": "two\n"}})
    text = """cat "$INPUT" "/nix/store/日本/語" > 'out ü' && echo "$INPUT" """
    name = "/nix/store/ä ö\t'\"$x\\"
    path = {"key": "PATH", "value": b"/nix/store/tools"}

    bundle = build(
        lab, runtime, mode, text,
        inputs=nodes(inputs), working_dir="büild %s", scratch_paths=["büild %s", "nix/store"],
        environment_vars=[{"key": "INPUT", "value": name.encode()}, path],
    )  # fmt: skip

    assert at(bundle, "büild %s/out ü", "büild %s").read_text() == "one\ntwo\n"


@every_way
def test_additional_files(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    """In a scratch directory, in one within it, in the root, and over one of our own."""
    require_runtime(runtime, mode)
    text = """
    cat /build/attrs /build/sub/deep/attrs /etc/nix/conf /etc/group > /nix/store/out
    echo more >> /build/attrs
    echo more > /build/sub/deep/more
    """
    paths = ["build/attrs", "build/sub/deep/attrs", "etc/group", "etc/nix/conf"]

    bundle = build(
        lab, runtime, mode, text,
        scratch_paths=["build", "build/sub", "nix/store"],
        additional_files=[{"path": path, "contents": f"{path}\n".encode()} for path in paths],
    )  # fmt: skip

    expected = ["build/attrs", "build/sub/deep/attrs", "etc/nix/conf", "etc/group"]
    assert at(bundle, "nix/store/out").read_text().split() == expected
    assert at(bundle, "build/attrs", "build").read_text() == "build/attrs\nmore\n"


@every_way
def test_no_scratch_at_all(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    build(lab, runtime, mode, "! touch /build/x", scratch_paths=[], outputs=[])


@pytest.fixture(scope="module")
def many_inputs() -> Iterator[Path]:
    """Return a directory of 2000 inputs, and the tools."""
    require_runtime(RUNC, Mode.ROOTFUL)
    with new_lab() as lab:
        yield lab.inputs(**{f"{i:04}": f"{i}\n" for i in range(2000)})


def build_of_many(many_inputs: Path, count: int) -> BuildRequest:
    inputs = [*nodes(many_inputs)[:count], nodes(many_inputs)[-1]]
    text = f"set -- /nix/store/*; cat /nix/store/{count - 1:04} > /nix/store/out; echo $# inputs"
    return build_request(**(script(text) | {"inputs": inputs}))


@pytest.mark.parametrize(
    ("runtime", "mode"),
    [way for way in EVERY_WAY if way.values[0] is CRUN or way.values[1] is Mode.USERNS],
)
def test_1000_inputs(runtime: Runtime, mode: Mode, lab: Lab, many_inputs: Path) -> None:
    """As many as crun takes, and as runc 1.1 does for root in a user namespace."""
    require_runtime(runtime, mode)
    bundle = lab.bundle(mode, build_of_many(many_inputs, 1000), "--inputs", many_inputs)
    outcome = run(runtime, mode, bundle)
    assert outcome.exit_code == 0, outcome.output
    assert "1001 inputs" in outcome.output
    assert at(bundle, "nix/store/out").read_text() == "999\n"


@every_way
def test_2000_inputs(runtime: Runtime, mode: Mode, lab: Lab, many_inputs: Path) -> None:
    require_runtime(runtime, mode)
    bundle = lab.bundle(mode, build_of_many(many_inputs, 2000), "--inputs", many_inputs)
    outcome = run(runtime, mode, bundle)
    if runtime is CRUN:  # as the diagnostic too-many-mounts says
        assert "Too many open files" in outcome.output
        return
    if mode is Mode.USERNS and is_runc_1_1(runtime):  # as ``specgen bundle`` warns
        assert "larger than UINT16_MAX" in outcome.output
        return
    assert outcome.exit_code == 0, outcome.output
    assert "2001 inputs" in outcome.output
    assert at(bundle, "nix/store/out").read_text() == "1999\n"


@every_way
def test_a_failing_build(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    request, inputs = scripted(lab, "exit 42")
    outcome = run(runtime, mode, lab.bundle(mode, request, "--inputs", inputs))
    assert outcome.exit_code == 42


@every_way
def test_force_replaces_what_a_build_left(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    """Also where it belongs to subordinate ids, in directories that nobody may write to."""
    require_runtime(runtime, mode)
    request, inputs = scripted(lab, "mkdir /build/d; touch /build/d/f; busybox chmod 0 /build/d")
    bundle = lab.bundle(mode, request, "--inputs", inputs)
    assert run(runtime, mode, bundle).exit_code == 0

    written = {"config.json", "inputs", "root", "scratch"}
    lab.bundle(mode, request, "--inputs", inputs, "--force")

    assert run(runtime, mode, bundle).exit_code == 0
    assert {p.name for p in bundle.iterdir()} == {*written, MARKER}
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("runtime", [RUNC, CRUN], ids=str)
def test_a_root_of_its_own(runtime: Runtime, lab: Lab) -> None:
    """Root maps all ids of the sandbox to others of the host, its own root among them."""
    require_runtime(runtime, Mode.USERNS)
    mapping = "0:200000:65536"
    bundle = build(
        lab, runtime, Mode.USERNS, "echo hello > /nix/store/out",
        "--uid-mapping", mapping, "--gid-mapping", mapping, "--copy-inputs",
    )  # fmt: skip
    assert at(bundle, "nix/store/out").stat().st_uid == 201000


# --- what ``specgen bundle`` warns of: client/specgen_client/host_checks.py -------------


def is_runc_1_1(runtime: Runtime) -> bool:
    return runtime is RUNC and runtime.version().startswith("1.1.")


def warned(lab: Lab, mode: Mode, request: BuildRequest, *flags: str | Path) -> tuple[Path, str]:
    """Write a bundle, and return it with the warnings."""
    bundle = lab.path / "builds/bundle"
    words = ("bundle", "-", bundle, "--inputs", lab.inputs(), "--sandbox-shell", SHELL)
    rootful = ("--rootful",) if mode is Mode.ROOTFUL else ()
    outcome = specgen(mode, *words, *rootful, *flags, stdin=request)
    assert outcome.exit_code == 0, outcome.output
    return bundle, outcome.output


@every_way
def test_missing_on_the_host(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    constraints = script("true", available_ro_paths=["/no/such/place"])["constraints"]
    request, _ = scripted(lab, "true", constraints=constraints)
    bundle, warning = warned(lab, mode, request)
    assert "warning: /no/such/place, to be mounted at /no/such/place, is not there" in warning
    outcome = run(runtime, mode, bundle)
    assert outcome.exit_code != 0
    assert "no such file or directory" in outcome.output.lower()


@every_way
def test_missing_input(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    request, _ = scripted(lab, "true", inputs=[file("missing")])
    bundle, warning = warned(lab, mode, request)
    assert f"warning: not in {lab.path}/inputs: missing: runc and crun will fail" in warning
    assert run(runtime, mode, bundle).exit_code != 0


@every_way
def test_dynamic_shell(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    request, _ = scripted(lab, "true")
    bundle, warning = warned(lab, mode, request, "--sandbox-shell", "/bin/bash")
    assert "warning: the sandbox shell /bin/bash is linked dynamically" in warning
    outcome = run(runtime, mode, bundle)
    assert outcome.exit_code != 0
    assert "no such file or directory" in outcome.output.lower()


@pytest.fixture
def guarded(lab: Lab) -> Iterator[Path]:
    """Return a directory on a file system of its own, mounted nosuid and nodev."""
    require_runtime(RUNC, Mode.ROOTFUL)
    # not below /tmp, where a rootful build may not go
    path = Path(tempfile.mkdtemp(prefix="specgen-", dir="/var/tmp"))
    tmpfs = ("mount", "-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "tmpfs")
    subprocess.run((*tmpfs, path), check=True)
    try:
        yield path
    finally:
        subprocess.run(("umount", path), check=True)
        path.rmdir()


@every_way
def test_file_system_flags(runtime: Runtime, mode: Mode, lab: Lab, guarded: Path) -> None:
    require_runtime(runtime, mode)
    (guarded / "file").write_text("there\n")
    ro_path = str(guarded / "file")
    constraints = script("true", available_ro_paths=[ro_path])["constraints"]
    request, _ = scripted(lab, f"cat {ro_path}", constraints=constraints)
    bundle, warning = warned(lab, mode, request)
    outcome = run(runtime, mode, bundle)
    assert ("lies on a file system mounted nosuid,nodev" in warning) == (mode is not Mode.ROOTFUL)
    if mode is not Mode.ROOTFUL and is_runc_1_1(runtime):
        assert "operation not permitted" in outcome.output
    else:
        assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize("denied", [True, False])
def test_a_device_outside_dev(denied: bool, lab: Lab) -> None:
    """On runc: crun makes no cgroup where these tests run it."""
    require_runtime(RUNC, Mode.ROOTFUL)
    require(Path("/dev/fuse").is_char_device(), "/dev/fuse")
    with tempfile.TemporaryDirectory(prefix="specgen-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        node = Path(name) / "node"
        os.mknod(node, stat.S_IFCHR, Path("/dev/fuse").stat().st_rdev)
        node.chmod(0o666)
        constraints = script("true", available_ro_paths=[str(node)])["constraints"]
        request, _ = scripted(lab, f"exec 3<>{node}", constraints=constraints)
        allow = f"{node}:c:10:229:rw"
        bundle, warning = warned(
            lab, Mode.ROOTFUL, request, *(() if denied else ("--device", allow))
        )
        outcome = run(RUNC, Mode.ROOTFUL, bundle)
    assert (f"{node} is a device that the spec's rules deny" in warning) == denied
    assert (f"Add --device {allow}" in warning) == denied
    assert ("Operation not permitted" in outcome.output) == denied
    assert (outcome.exit_code == 0) != denied


# --- without root ---------------------------------------------------------------------


def test_the_user_of_a_bundle_is_not_root(lab: Lab) -> None:
    """The command's own choice of mappings, where it runs unprivileged."""
    require_runtime(RUNC, Mode.UNPRIVILEGED)
    request, _ = scripted(lab, "true", inputs=[file("a")])
    bundle = lab.bundle(Mode.UNPRIVILEGED, request)
    linux = json.loads((bundle / "config.json").read_text())["linux"]
    assert linux["uidMappings"][0] == {"containerID": 0, "hostID": owner_of(lab)[0], "size": 1}
    assert build_uid(bundle) == linux["uidMappings"][1]["hostID"]


def test_an_unprivileged_rootful_bundle_says_so(lab: Lab) -> None:
    require_runtime(RUNC, Mode.UNPRIVILEGED)
    request, _ = scripted(lab, "true", inputs=[])
    words = ("bundle", "-", lab.path / "builds/b", "--rootful", "--sandbox-shell", SHELL)
    outcome = specgen(Mode.UNPRIVILEGED, *words, stdin=request)
    assert outcome.exit_code == 0
    assert "as uid 1000, cannot write there: write this bundle as root" in outcome.output
