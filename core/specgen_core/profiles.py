"""Profiles: whose sandbox a spec is, as defaults of the options that it hangs on.

The *seed*, here and elsewhere, is what this project grew from: tvix's ``make_spec``, in Rust.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias, get_args

import msgspec

__all__ = [
    "KNOWN_DEVICES",
    "PROFILES",
    "PROFILE_NAMES",
    "Device",
    "DeviceRules",
    "Nofile",
    "Personality",
    "Profile",
    "ProfileName",
    "Seccomp",
    "device_of",
]

ProfileName: TypeAlias = Literal["seed", "snix", "nix"]
PROFILE_NAMES: tuple[ProfileName, ...] = get_args(ProfileName)

DeviceRules: TypeAlias = Literal["deny", "none"]
Seccomp: TypeAlias = Literal["none", "nix"]
Personality: TypeAlias = Literal["none", "system"]


class Nofile(msgspec.Struct, frozen=True):
    """How many files a process may have open; a hard limit of 0 leaves it to the runtime."""

    soft: int
    hard: int


class Device(msgspec.Struct, frozen=True):
    """A device node that the build may use, where it is among the read-only paths."""

    path: str
    type: str
    """``c`` or ``b``."""
    major: int
    minor: int
    access: str
    """Of ``r``, ``w`` and ``m``."""


# Linux, Documentation/admin-guide/devices.txt
KNOWN_DEVICES = {
    device.path: device
    for device in (
        Device("/dev/kvm", "c", 10, 232, "rw"),
        Device("/dev/fuse", "c", 10, 229, "rw"),
        Device("/dev/net/tun", "c", 10, 200, "rw"),
    )
}


_DEVICE = re.compile(r"(/[^:\0]+):([cb]):([0-9]{1,7}):([0-9]{1,7}):([rwm]{1,3})").fullmatch


def device_of(text: str) -> Device | None:
    """Return the device of a known name or of PATH:TYPE:MAJOR:MINOR:ACCESS, if it is one."""
    found = _DEVICE(text)
    if not found:
        return KNOWN_DEVICES.get(text)
    path, type_, major, minor, access = found.groups()
    return Device(path, type_, int(major), int(minor), access)


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The options that a profile says; the defaults are the seed's."""

    cgroup_namespace: bool = True
    nofile: Nofile = Nofile(1024, 1024)
    drop_capabilities: bool = False
    tmp_mode: str = "700"
    devices: tuple[str, ...] = ()
    device_rules: DeviceRules = "deny"
    seccomp: Seccomp = "none"
    personality: Personality = "none"


PROFILES: dict[ProfileName, Profile] = {
    "seed": Profile(),
    # snix, build/src/oci/spec.rs, with oci-spec 0.7.1
    "snix": Profile(cgroup_namespace=False, device_rules="none"),
    # Nix, src/libstore: the Linux sandbox of a build
    "nix": Profile(
        nofile=Nofile(0, 0),
        drop_capabilities=True,
        tmp_mode="1777",
        devices=tuple(KNOWN_DEVICES),
        seccomp="nix",
        personality="system",
    ),
}
