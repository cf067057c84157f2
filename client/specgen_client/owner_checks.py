"""Who a build is on this host, what that user may not do, and who may come between."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from specgen_core import BUILD_GID, BUILD_UID

from .host_rule import HostBuild, HostFindings, HostRules
from .owners import build_owner, on_host
from .sandbox import may

RULES = HostRules()

_NOBODY = 65534
_BUILD = "the build"
_MEANT = (
    ("root of the sandbox", 0, 0),
    (_BUILD, BUILD_UID, BUILD_GID),
    ("nobody of the sandbox", _NOBODY, _NOBODY),
)


@RULES.add(
    "closed-read-only-path",
    "{path} is closed to the build (mode {mode:o}, uid {uid}, gid {gid}): it will be mounted, and",
    "the build cannot look at it (permission denied)",
    proven_by=(
        "test_a_read_only_path_that_is_closed_to_the_build",
        "test_what_root_keeps_to_itself",
    ),
)
def _closed_read_only_path(build: HostBuild) -> HostFindings:
    """A read-only path's mode and owner keep the build from looking at it."""
    for path in build.request.constraints.available_ro_paths:
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            continue  # said already
        is_directory = stat.S_ISDIR(status.st_mode)
        if not may(build.spec, status, 5 if is_directory else 4):
            mode = stat.S_IMODE(status.st_mode)
            yield {"path": path, "mode": mode, "uid": status.st_uid, "gid": status.st_gid}


@RULES.add(
    "borrowed-id",
    "{who} is uid {uid} of this host, {name}, and can do here what {name} can: with --rootless",
    "--id-mappings auto it is nobody",
    proven_by=("test_a_sandbox_that_is_somebody",),
)
def _borrowed_id(build: HostBuild) -> HostFindings:
    """The build, or root of the sandbox, is somebody of this host: root, or an account."""
    for who, uid, gid in _MEANT:
        owner = on_host(build.spec, uid, gid)
        if owner is None or (who != _BUILD and not build.rootless):
            continue
        try:
            name = pwd.getpwuid(owner[0]).pw_name
        except KeyError:
            continue
        if owner[0] == 0 or owner[0] != os.geteuid():
            yield {"who": who, "uid": owner[0], "name": name}


@RULES.add(
    "exchangeable-bundle",
    "{directory} is {whose}, who may put another bundle in the place of this one before root runs",
    "it. Write it to a directory of root's, such as below /var/lib",
    proven_by=("test_a_directory_of_somebody_else",),
)
def _exchangeable_bundle(build: HostBuild) -> HostFindings:
    """Root writes the bundle where somebody else can exchange it."""
    # whoever may rename what lies on the way to a bundle decides what root will run
    if os.geteuid() != 0:
        return
    parent = Path(os.path.realpath(build.bundle.parent))
    for directory in (parent, *parent.parents):
        try:
            status = directory.stat()
        except OSError:
            return  # said when the bundle is written
        by_group = status.st_mode & stat.S_IWGRP and status.st_gid != 0
        by_others = (
            by_group or status.st_mode & stat.S_IWOTH
        ) and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or by_others:
            whose = f"uid {status.st_uid}'s" if status.st_uid else "for others to write to"
            yield {"directory": directory, "whose": whose}
            return


@RULES.add(
    "own-scratch",
    "the scratch directories are yours, and a rootful build, as uid {uid}, cannot write there:",
    "write this bundle as root",
    proven_by=("test_an_unprivileged_rootful_bundle_says_so",),
)
def _own_scratch(build: HostBuild) -> HostFindings:
    """The spec is rootful, and neither root nor the build's own user writes the bundle."""
    is_builds = os.geteuid() == 0 or build_owner(build.spec) == (os.geteuid(), os.getegid())
    has_scratch = any(mount.source.startswith("scratch/") for mount in build.spec.mounts)
    if not build.rootless and not is_builds and has_scratch:
        yield {"uid": BUILD_UID}
