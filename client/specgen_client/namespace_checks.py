"""Whether this host lets a user make the user namespace of a rootless spec, with its ids."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from specgen_commands.host_ids import ids_not_to_be_mapped
from specgen_core import oci

from .host_rule import MOST_NAMED, HostBuild, HostFindings, HostRules

RULES = HostRules()

_SYSCTLS = Path("/proc/sys")
_NSSWITCH = Path("/etc/nsswitch.conf")


def _is(name: str, value: str) -> bool:
    """Return whether a setting of the kernel is there, and has this value."""
    try:
        return (_SYSCTLS / name.replace(".", "/")).read_text().strip() == value
    except OSError:
        return False


@RULES.add(
    "no-user-namespaces",
    "{setting} = 0 lets {whom} make a user namespace, which a rootless spec asks for: runc and",
    "crun fail ({words}). Have that changed, or run a rootful spec as root",
    proven_by=("test_user_namespaces_are_forbidden", "test_settings_that_forbid_user_namespaces"),
)
def _no_user_namespaces(build: HostBuild) -> HostFindings:
    """The spec is rootless, and user.max_user_namespaces is 0.

    Or a user other than root is to run it, and kernel.unprivileged_userns_clone is 0.
    """
    if not build.rootless:
        return
    for_all, for_users = "user.max_user_namespaces", "kernel.unprivileged_userns_clone"
    if _is(for_all, "0"):
        yield {"setting": for_all, "whom": "nobody", "words": "no space left on device"}
    if os.geteuid() != 0 and _is(for_users, "0"):
        yield {"setting": for_users, "whom": "only root", "words": "operation not permitted"}


_PROFILES = Path("/etc/apparmor.d")
_RESTRICTED = "kernel.apparmor_restrict_unprivileged_userns"


@RULES.add(
    "no-apparmor-profile",
    "{setting} = 1 lets users other than root use a user namespace only by programs with an",
    "AppArmor profile for it, and no file in {profiles} is for {runtimes}: they fail (permission",
    "denied, or operation not permitted). Add a profile with the rule userns, or have it set to 0",
    proven_by=("test_apparmor_restricts_user_namespaces",),
)
def _no_apparmor_profile(build: HostBuild) -> HostFindings:
    """The spec is rootless, a user other than root is to run it, and AppArmor forbids it.

    kernel.apparmor_restrict_unprivileged_userns is 1 then, and no profile is for the runtime.
    """
    if not build.rootless or os.geteuid() == 0 or not _is(_RESTRICTED, "1"):
        return
    try:
        files = [file.read_text(errors="replace") for file in _PROFILES.iterdir() if file.is_file()]
    except OSError:
        return
    installed = filter(shutil.which, ("runc", "crun"))
    # Ubuntu's own packages have one for each. Whichever path it is for: only AppArmor knows.
    without = [name for name in installed if not any(re.search(rf"\b{name}\b", f) for f in files)]
    if without:
        yield {"setting": _RESTRICTED, "profiles": _PROFILES, "runtimes": " and ".join(without)}


@RULES.add(
    "ids-not-ones-own",
    "{kind}s {ids} of this host may not be mapped by this user, see {file}: runc and crun fail",
    "({words}). Leave the mappings to --id-mappings auto, or map others",
    proven_by=("test_ids_that_are_not_ones_own", "test_ids_that_may_be_mapped"),
)
def _ids_not_ones_own(build: HostBuild) -> HostFindings:
    """The spec is rootless, and maps ids that are not subordinate ones of who is to run it.

    Root may map all that its own user namespace has. Not given where subordinate ids come from
    elsewhere than /etc/subuid and /etc/subgid, by /etc/nsswitch.conf.
    """
    is_root = os.geteuid() == 0
    if not build.rootless or not (is_root or _subordinate_ids_are_in_files()):
        return
    try:
        uids, gids = ids_not_to_be_mapped(*_mapped(build))
    except OSError:
        return
    for kind, found in (("uid", uids), ("gid", gids)):
        if found:
            yield {
                "kind": kind,
                "ids": ", ".join(f"{ids.start}-{ids.stop - 1}" for ids in found[:MOST_NAMED]),
                "file": f"/proc/self/{kind}_map" if is_root else f"/etc/sub{kind}",
                "words": "operation not permitted" if is_root else f"new{kind}map: not allowed",
            }


def _mapped(build: HostBuild) -> tuple[list[range], list[range]]:
    """Return the uids and gids of the host that a spec maps."""

    def of_host(mappings: tuple[oci.IdMap, ...]) -> list[range]:
        return [range(m.host_id, m.host_id + m.size) for m in mappings]

    return of_host(build.spec.linux.uid_mappings), of_host(build.spec.linux.gid_mappings)


def _subordinate_ids_are_in_files() -> bool:
    """Return whether /etc/subuid and /etc/subgid say it all: nsswitch.conf(5), subuid(5)."""
    try:
        text = _NSSWITCH.read_text(errors="replace")
    except OSError:
        return True
    source = re.search(r"^\s*subid:\s*(\w+)", text, re.MULTILINE)
    return source is None or source[1] == "files"


@RULES.add(
    "no-mapping-tool",
    "{tool} {why}, and only by it a user can map subordinate ids: runc and crun fail (operation",
    "not permitted, invalid argument). Install it as it comes, setuid root (Debian's package",
    "uidmap)",
    proven_by=("test_no_mapping_tool",),
)
def _no_mapping_tool(build: HostBuild) -> HostFindings:
    """The spec is rootless, for a user other than root, and newuidmap or newgidmap is missing.

    Or it has no privileges: it is neither setuid root nor has capabilities, or lies on a file
    system mounted nosuid.
    """
    if not build.rootless or os.geteuid() == 0:
        return
    own_ids = (("newuidmap", os.geteuid()), ("newgidmap", os.getegid()))
    for (tool, own), mapped in zip(own_ids, _mapped(build)):
        if mapped and mapped != [range(own, own + 1)] and (why := _why_no_tool(tool)):
            yield {"tool": tool, "why": why}


def _why_no_tool(name: str) -> str:
    """Return why a program cannot map ids; empty if it can."""
    path = shutil.which(name)
    if path is None:
        return "is not in PATH"
    try:
        status, flags = os.stat(path), os.statvfs(path).f_flag  # noqa: PTH116
        has_capabilities = "security.capability" in os.listxattr(path)
    except OSError:
        return ""
    if flags & os.ST_NOSUID:
        return f"lies on a file system mounted nosuid ({path})"
    if has_capabilities or (status.st_mode & stat.S_ISUID and status.st_uid == 0):
        return ""
    return f"is not setuid root ({path})"
