"""Rules about what the build wants of its host: system, devices and shell."""

from __future__ import annotations

import re

from ..layout import shown
from ..paths import lies_in
from ..profiles import device_of
from ..spec import needs_personality
from .rule import Build, Findings, Rules

RULES = Rules()

_SYSTEM = re.compile(r"[a-z0-9_]+-linux").fullmatch


@RULES.add(
    "foreign-system",
    "runc and crun run builds for Linux only, not for {system}. Send the build to a host of its",
    "own, or name a system such as x86_64-linux",
    proven_by=("test_foreign_system",),
)
def _foreign_system(build: Build) -> Findings:
    """``constraints.system`` is not a machine's name followed by ``-linux``, in lower case."""
    system = build.request.constraints.system
    if system and not _SYSTEM(system):
        yield "constraints.system", {"system": shown(system)}


@RULES.add(
    "needs-personality",
    "a build for {system} sees a 64-bit machine (uname -m), and software that asks for the",
    "machine builds for that one. Set personality to system, which runc from 1.2 and crun from",
    "0.11 on support",
    proven_by=("test_needs_personality",),
)
def _needs_personality(build: Build) -> Findings:
    """``constraints.system`` is of 32 bits, and ``personality`` is none."""
    system = build.request.constraints.system
    if needs_personality(system) and build.options.personality == "none":
        yield "constraints.system", {"system": system}


_NO_DEVICES = ("/dev/shm", "/dev/mqueue", "/dev/pts")
_OF_EVERY_CONTAINER = frozenset(
    f"/dev/{name}"
    for name in ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")
)  # runtime-spec, config-linux.md, "Default Devices"


@RULES.add(
    "device-without-rule",
    "{path} is a device that the spec's rules deny: where runc or crun give the build a cgroup, as",
    'they do when root runs them, opening it fails ("Operation not permitted"). Add it to',
    "options.devices, or set device_rules to none",
    proven_by=("test_device_without_rule",),
)
def _device_without_rule(build: Build) -> Findings:
    """A read-only path lies in /dev, and neither ``devices`` nor ``device_rules`` allow it.

    Not if it is a device that every container has.
    """
    if build.options.device_rules == "none":
        return
    allowed = {device.path for text in build.options.devices if (device := device_of(text))}
    for number in build.layout.ro_paths:
        path = build.layout.place(number)
        is_device = path.startswith("/dev/") and not any(lies_in(path, d) for d in _NO_DEVICES)
        if is_device and path not in _OF_EVERY_CONTAINER and path not in allowed:
            yield build.layout.field(number), {"path": shown(path)}


@RULES.add(
    "relative-shell",
    "{shell} is relative, and runc and crun look for it in the bundle: they fail where it is not",
    "there. Give the absolute path of a static shell",
    proven_by=("test_relative_shell",),
)
def _relative_shell(build: Build) -> Findings:
    """The build asks for /bin/sh, and ``sandbox_shell`` is no absolute path."""
    shell = build.options.sandbox_shell
    if build.request.constraints.provide_bin_sh and not shell.startswith("/"):
        yield "options.sandbox_shell", {"shell": shown(shell)}
