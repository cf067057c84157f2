"""What a build wants of this machine and its runtimes: architecture, memory, limits, versions."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import struct
import subprocess
from pathlib import Path, PurePath
from typing import NamedTuple

from .host_rule import HostBuild, HostFindings, HostRules

RULES = HostRules()

_SECONDS = 10.0  # for a program that is asked something


class _Machine(NamedTuple):
    """What the kernel looks at in a program's ELF header, see elf(5)."""

    family: str
    """Machines that may execute each other's programs, as the kernel is built."""
    elf_class: int
    byte_order: int
    number: int
    """e_machine, of elf.h."""


_MACHINES = {
    "x86_64": _Machine("x86", 2, 1, 62),
    "i686": _Machine("x86", 1, 1, 3),
    "aarch64": _Machine("arm", 2, 1, 183),
    "armv5tel": _Machine("arm", 1, 1, 40),
    "armv6l": _Machine("arm", 1, 1, 40),
    "armv7l": _Machine("arm", 1, 1, 40),
    "riscv64": _Machine("riscv", 2, 1, 243),
    "powerpc64le": _Machine("powerpc", 2, 1, 21),
    "ppc64le": _Machine("powerpc", 2, 1, 21),  # as uname(2) has it
    "s390x": _Machine("s390", 2, 2, 22),
    "loongarch64": _Machine("loongarch", 2, 1, 258),
}


@RULES.add(
    "other-system",
    "the build is for {system}, and this host, {machine}, executes no such programs, nor has it an",
    "emulator for them (binfmt_misc): runc and crun start the build all the same, and its",
    "programs fail (exec format error). Send it elsewhere",
    proven_by=("test_a_system_that_is_not_the_hosts", "test_a_system_that_is_emulated"),
)
def _other_system(build: HostBuild) -> HostFindings:
    """``constraints.system`` is of another family of machines, which this host cannot emulate.

    Families are x86, ARM and the like: a host of 64 bits may execute programs of 32.
    """
    system = build.request.constraints.system
    wanted = _MACHINES.get(system.removesuffix("-linux"))
    machine = os.uname().machine
    own = _MACHINES.get(machine)
    if wanted and own and wanted.family != own.family and _cannot_execute(wanted):
        yield {"system": system, "machine": machine}


def _cannot_execute(machine: _Machine) -> bool:
    """Return whether the kernel knows neither a machine nor an emulator for it.

    It is asked, with a program that is nothing but a header: /proc/sys/fs/binfmt_misc says what is
    registered only where it is mounted, and in most containers it is not. An emulator ends at
    once, since there is nothing to execute.
    """
    order = "<" if machine.byte_order == 1 else ">"
    ident = bytes((*b"\x7fELF", machine.elf_class, machine.byte_order, 1))
    head = struct.pack(f"{order}16sHHI", ident, 2, machine.number, 1)  # an executable, version 1
    fd = os.memfd_create("specgen", os.MFD_CLOEXEC)
    try:
        os.write(fd, head.ljust(256, b"\0"))
        subprocess.run(  # noqa: S603
            (f"/proc/{os.getpid()}/fd/{fd}",),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except OSError as error:
        return error.errno == errno.ENOEXEC
    except subprocess.TimeoutExpired:
        pass
    finally:
        os.close(fd)
    return False


# Since when a runtime knows linux.personality. Source: its CHANGELOG.md or NEWS.
_KNOWS_PERSONALITY = {"runc": (1, 2), "crun": (0, 11)}


@RULES.add(
    "personality-ignored",
    "{runtime} {version} of this host ignores linux.personality, so a build for {system} sees the",
    "machine that the host is (uname -m: {machine}). Use {runtime} from {least} on",
    proven_by=("test_a_runtime_that_is_too_old_for_personality", "test_versions_of_runtimes"),
)
def _personality_ignored(build: HostBuild) -> HostFindings:
    """The spec has a personality, and a runtime of this host is too old for it."""
    if build.spec.linux.personality is None:
        return
    for runtime, least in _KNOWS_PERSONALITY.items():
        version = _version(runtime)
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        if numbers and numbers < least:
            yield {
                "runtime": runtime,
                "version": version,
                "system": build.request.constraints.system,
                "machine": os.uname().machine,
                "least": ".".join(map(str, least)),
            }


def _version(runtime: str) -> str:
    """Return which version of a runtime is in PATH; empty where that cannot be known."""
    if not (path := shutil.which(runtime)):
        return ""
    try:
        done = subprocess.run(  # noqa: S603
            (path, "--version"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.match(
        rf"{runtime} version (\d+\.\d+[\w.+~-]*)", done.stdout.decode(errors="replace")
    )
    return found[1] if found else ""


@RULES.add(
    "too-little-memory",
    "the build wants a host with {wanted} bytes of memory (constraints.min_memory), and this one",
    "has {memory}: runc and crun start it all the same. Send it elsewhere",
    proven_by=("test_memory_that_the_host_should_have",),
)
def _too_little_memory(build: HostBuild) -> HostFindings:
    """``constraints.min_memory`` is more than this host has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if build.min_memory > memory:
        yield {"wanted": build.min_memory, "memory": memory}


@RULES.add(
    "too-few-open-files",
    "a build may have {wanted} files open by its spec, and this user {own}: runc and crun fail",
    "(operation not permitted). Raise the user's limit, or lower --nofile",
    proven_by=("test_a_limit_of_open_files_above_ones_own",),
)
def _too_few_open_files(build: HostBuild) -> HostFindings:
    """The spec's hard limit of open files is above that of the user who is to run it."""
    # only root may raise a hard limit: setrlimit(2)
    _, own = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max((limit.hard for limit in build.spec.process.rlimits), default=0)
    if os.geteuid() != 0 and wanted > own != resource.RLIM_INFINITY:
        yield {"wanted": wanted, "own": own}


_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_WITHOUT_V2 = "rootless needs no limits + no cgrouppath when no permission is granted for cgroups"


@RULES.add(
    "no-cgroup",
    "the spec has {what}, and this user may make no cgroup in {directory}: runc fails ({words}).",
    "Run it as root, or where a cgroup is delegated to the user",
    proven_by=("test_limits_without_a_cgroup", "test_where_a_cgroup_is_made"),
)
def _no_cgroup(build: HostBuild) -> HostFindings:
    """The spec has limits or a cgroup, and the user who is to run it may not make that cgroup.

    Not given where ``cgroups_path`` is of systemd's kind, with colons.
    """
    path, resources = build.spec.linux.cgroups_path, build.spec.linux.resources
    if os.geteuid() == 0 or ":" in path:
        return
    limits = {"memory": resources.memory, "cpu": resources.cpu, "pids": resources.pids}
    if path:
        controllers, what = ["cpuset", *limits], f"the cgroup {path}"
        words = "permission denied"
    else:
        controllers = [name for name, limit in limits.items() if limit]
        what = f"limits ({', '.join(controllers)})"
        words = _WITHOUT_V2 if _is_unified() else "container could not join or create cgroup"
    for controller in controllers:
        if directory := _closed_cgroup(controller, path):
            yield {"what": what, "directory": directory, "words": words}
            return


def _closed_cgroup(controller: str, path: str) -> Path | None:
    """Return where runc may make no cgroup; None if it may, or if cgroups lie elsewhere.

    Source: runc 1.1, libcontainer/cgroups, fs/paths.go and fs2/defaultpath.go.
    """
    unified = _is_unified()
    top = _CGROUPS if unified else _CGROUPS / controller
    own = _own_cgroup("" if unified else controller)
    if own is None or not top.is_dir():
        return None
    # with cgroup v2 beside its own, which has processes in it and so can have none below
    above = own.parent if unified else own
    at = top / ("/" / above / path).relative_to("/")
    while not os.path.exists(at):  # noqa: PTH110 - false for what may not be looked at
        at = at.parent
    return None if os.access(at, os.W_OK, effective_ids=True) else at


def _is_unified() -> bool:
    """Return whether there is cgroup v2 alone: cgroups(7)."""
    return (_CGROUPS / "cgroup.controllers").exists()


def _own_cgroup(controller: str) -> PurePath | None:
    """Return the cgroup of this process: cgroups(7), /proc/pid/cgroup."""
    for line in _OWN_CGROUPS.read_text(errors="surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return PurePath(path)
    return None
