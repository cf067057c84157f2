"""What a build can do to its host, on real runtimes, and what ``specgen bundle`` says of it."""

from __future__ import annotations

import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtimes import (
    EVERY_WAY,
    RUNC,
    SHELL,
    USER,
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
from support import build_request

from specgen_core import scratch_path
from tvix.build.protos.build_pb2 import BuildRequest

every_way = pytest.mark.parametrize(("runtime", "mode"), EVERY_WAY)
STRANGER = 4242


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


def requested(lab: Lab, text: str, *ro_paths: str | Path) -> BuildRequest:
    fields = script(text, available_ro_paths=[str(path) for path in ro_paths])
    return build_request(**fields, inputs=nodes(lab.inputs()))


def written(
    lab: Lab, mode: Mode, request: BuildRequest, *flags: str | Path, bundle: Path | None = None
) -> tuple[Path, str]:
    """Write a bundle, and return it with what was said."""
    bundle = bundle or lab.path / "builds/bundle"
    words = ("bundle", "-", bundle, "--format", "binary", "--inputs", lab.inputs())
    rootful = ("--rootful",) if mode is Mode.ROOTFUL else ()
    done = specgen(mode, *words, "--sandbox-shell", SHELL, *rootful, *flags, stdin=request)
    assert done.exit_code == 0, done.output
    return bundle, done.output


SETUID = """
cp /nix/store/tools/busybox /nix/store/out
for id in 0:0 65534:65534; do busybox chown $id /nix/store/out 2>/dev/null && break; done
busybox chmod 6755 /nix/store/out
busybox chmod 777 /nix/store /build
ls -ln /nix/store/out
"""


@every_way
def test_a_setuid_program_that_a_build_leaves(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    """It belongs to nobody of the host, but in one way; and no other user can reach it."""
    require_runtime(runtime, mode)
    bundle, _ = written(lab, mode, requested(lab, SETUID))
    outcome = run(runtime, mode, bundle)
    assert outcome.exit_code == 0, outcome.output
    [program] = (bundle / scratch_path("nix/store")).glob("out")
    status = program.stat()
    assert status.st_mode & 0o7777 == 0o6755
    if mode is Mode.USERNS:
        with pytest.raises(KeyError):
            pwd.getpwuid(status.st_uid)
    elif mode is Mode.ROOTFUL:
        assert status.st_uid == 1000
    else:
        assert status.st_uid != 0
    # by way of a shell: setpriv itself still has root's capabilities when it executes
    as_stranger = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "sh")
    done = subprocess.run(
        (*as_stranger, "-c", 'exec "$0" id', program), capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr
    done = subprocess.run(
        (*as_stranger, "-c", 'ls "$0"', bundle), capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr


@every_way
def test_what_root_keeps_to_itself(runtime: Runtime, mode: Mode, lab: Lab) -> None:
    require_runtime(runtime, mode)
    with tempfile.TemporaryDirectory(prefix="specgen-", dir="/var/tmp") as name:
        secret = Path(name) / "secret"
        secret.write_text("secret\n")
        secret.chmod(0o600)
        Path(name).chmod(0o755)
        bundle, _ = written(lab, mode, requested(lab, f"! cat {secret}", name))
        outcome = run(runtime, mode, bundle)
    assert outcome.exit_code == 0, outcome.output
    assert "ermission denied" in outcome.output


@pytest.fixture
def mounted() -> Iterator[Path]:
    """Return a directory with a file system of its own, and another one below it."""
    require_runtime(RUNC, Mode.ROOTFUL)
    path = Path(tempfile.mkdtemp(prefix="specgen-", dir="/var/tmp"))
    places = (path, path / "sub")
    try:
        for place in places:
            place.mkdir(exist_ok=True)
            tmpfs = ("mount", "-t", "tmpfs", "-o", "mode=777", "tmpfs", place)
            subprocess.run(tmpfs, check=True)
        yield path
    finally:
        subprocess.run(("umount", "--recursive", path), check=True)
        path.rmdir()


@every_way
def test_a_mount_below_a_read_only_path(
    runtime: Runtime, mode: Mode, mounted: Path, lab: Lab
) -> None:
    require_runtime(runtime, mode)
    text = f"! touch {mounted}/new; touch {mounted}/sub/new || echo closed"
    bundle, said = written(lab, mode, requested(lab, text, mounted))
    assert f"warning: {mounted} has other mounts below it: {mounted}/sub; runc, and" in said
    outcome = run(runtime, mode, bundle)
    assert outcome.exit_code == 0, outcome.output
    assert "Read-only file system" in outcome.output
    assert {path.name for path in mounted.iterdir()} == {"sub"}
    stays_writable = runtime is RUNC or mode is not Mode.USERNS
    assert ("closed" in outcome.output) == (not stays_writable)
    assert (mounted / "sub/new").exists() == stays_writable


@pytest.fixture
def closed(lab: Lab) -> Path:
    path = lab.path / "closed"
    path.mkdir(mode=0o700)
    return path


@pytest.mark.parametrize(
    "runtime", [pytest.param(way.values[0], id=str(way.values[0])) for way in EVERY_WAY[::3]]
)
def test_a_bundle_that_the_sandboxs_root_cannot_reach(
    runtime: Runtime, closed: Path, lab: Lab
) -> None:
    require_runtime(runtime, Mode.USERNS)
    request = requested(lab, "true")
    bundle, said = written(lab, Mode.USERNS, request, bundle=closed / "b")
    assert f"warning: {closed} is closed to the sandbox's root, uid " in said
    outcome = run(runtime, Mode.USERNS, bundle)
    assert ("permission denied" in outcome.output) == (runtime is RUNC)


@pytest.mark.parametrize(
    "runtime", [pytest.param(way.values[0], id=str(way.values[0])) for way in EVERY_WAY[::3]]
)
@pytest.mark.parametrize("copied", [False, True], ids=["linked", "copied"])
def test_inputs_that_the_sandboxs_root_cannot_reach(
    runtime: Runtime, copied: bool, closed: Path, lab: Lab
) -> None:
    require_runtime(runtime, Mode.USERNS)
    request = requested(lab, "true")
    inputs = lab.inputs().rename(closed / "inputs")
    words = ("bundle", "-", lab.path / "builds/b", "--inputs", inputs, "--sandbox-shell", SHELL)
    flags = ("--copy-inputs",) if copied else ()
    done = specgen(Mode.USERNS, *words, *flags, stdin=request)
    assert done.exit_code == 0, done.output
    warning = f"warning: {closed} is closed to the sandbox's root, uid "
    assert (warning in done.output) == (not copied)
    outcome = run(runtime, Mode.USERNS, lab.path / "builds/b")
    if copied or runtime is RUNC:
        assert outcome.exit_code == 0, outcome.output
    else:
        assert "Permission denied" in outcome.output


@pytest.mark.parametrize(
    "runtime", [pytest.param(way.values[0], id=str(way.values[0])) for way in EVERY_WAY[::3]]
)
def test_a_read_only_path_that_this_user_may_not_look_at(
    runtime: Runtime, closed: Path, lab: Lab
) -> None:
    require_runtime(runtime, Mode.UNPRIVILEGED)
    (closed / "dir").mkdir()
    path = closed / "dir"
    bundle, said = written(lab, Mode.UNPRIVILEGED, requested(lab, "true", path))
    assert (
        f"warning: {path}, to be mounted at {path}, cannot be looked at by this user (Permission"
        " denied): runc and crun will fail" in said
    )
    outcome = run(runtime, Mode.UNPRIVILEGED, bundle)
    assert outcome.exit_code != 0
    assert "permission denied" in outcome.output.lower()


def test_how_to_remove_what_a_user_built(lab: Lab) -> None:
    require_runtime(RUNC, Mode.UNPRIVILEGED)
    text = "mkdir /build/d; touch /build/d/f; busybox chmod 0 /build/d"
    bundle, said = written(lab, Mode.UNPRIVILEGED, requested(lab, text))
    assert run(RUNC, Mode.UNPRIVILEGED, bundle).exit_code == 0
    [line] = [line for line in said.splitlines() if line.startswith("# remove it: ")]
    entry = pwd.getpwnam(USER)
    as_user = ("setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups")
    command = line.removeprefix("# remove it: ")
    subprocess.run((*as_user, "--inh-caps=-all", "sh", "-c", command), check=True)
    assert not bundle.exists()
