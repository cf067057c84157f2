"""Requests whose paths lie where rules look: valid ones for the most part, from a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from specgen_core import IdMapping, Nofile, Resources, SpecOptions
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

__all__ = ["ALL_OPTIONS", "odd_requests", "plausible_requests"]

_MAPPINGS = (IdMapping(0, 100_000, 1000), IdMapping(1000, 0, 1))
ALL_OPTIONS = [
    SpecOptions(
        rootless=rootless,
        sandbox_shell="/usr/lib/sh",
        terminal=terminal,
        cgroup_namespace=cgroup_namespace,
        uid_mappings=mappings,
        gid_mappings=mappings,
    )
    for rootless, terminal, cgroup_namespace in itertools.product((True, False), repeat=3)
    for mappings in (((), _MAPPINGS) if rootless else ((),))
]
ALL_OPTIONS += [
    SpecOptions().override(profile="snix"),
    SpecOptions().override(profile="nix"),
    SpecOptions().override(profile="nix", rootless=False, tmp_mode="700"),
    SpecOptions().override(profile="nix", seccomp="none", personality="none", skeleton=True),
    SpecOptions(nofile=Nofile(24, 24), sandbox_shell="sh"),
    SpecOptions(
        rootless=False,
        nofile=Nofile(100, 200),
        resources=Resources(1 << 30, 50_000, 100_000, 512),
        cgroups_path="/builds/x",
        devices=("/dev/kvm", "/dev/x:b:1:2:rwm"),
    ),
]

_PLACES = [
    *("build", "nix/store", "nix/store/n", "nix/store/n/x", "opt", "a", "a/b"),
    *("bin", "bin/sh", "bin/sh/x", "etc", "etc/hosts", "etc/hosts/x"),
    *("tmp", "tmp/x", "dev", "dev/x", "proc/y", "sys/z"),
]
_NAMES = ["n", "sh", "hosts", "b", "x", "bin", "dev", "etc"]
_DIRECTORIES = ["nix/store", "bin", "etc", "a", "a/b", "tmp", "proc", ""]


def odd_requests(rng: random.Random) -> Iterator[BuildRequest]:
    """Yield requests without end, in which anything may lie over anything."""
    while True:
        yield _odd_request(rng)


def _odd_request(rng: random.Random) -> BuildRequest:
    scratch_paths = sorted(rng.sample(_PLACES, rng.randrange(3)))
    request = BuildRequest(
        inputs=[_node(rng, name) for name in _some(rng, _NAMES, 3)],
        command_args=[rng.choice(["/x", "/nix/store/n", "/nix/store/n/bin/sh", "sh", "/bin/sh"])],
        working_dir=rng.choice(["", "build", *_PLACES]),
        scratch_paths=scratch_paths,
        inputs_dir=rng.choice(_DIRECTORIES),
        outputs=[f"{path}{rng.choice(['', '/out', '/n', '/n/x'])}" for path in scratch_paths[:1]],
        additional_files=[{"path": path} for path in _some(rng, _PLACES, 2)],
    )
    _add_variables(rng, request)
    _add_constraints(rng, request, [f"/{path}" for path in _some(rng, _PLACES, 2)])
    return request


_COMMANDS = [
    *(3 * ["/bin/sh", "/nix/store/n/sh", "/nix/store/n", "sh"]),
    *("/nix/store//n/sh", "/nix/store/./n/sh", "/nix/store/a/../n/sh", "//nix/store/n/sh", "/bin/"),
]


def plausible_requests(rng: random.Random) -> Iterator[BuildRequest]:
    """Yield requests without end, of which most are as a coordinator's, and few are odd."""
    while True:
        yield _plausible_request(rng)


def _plausible_request(rng: random.Random) -> BuildRequest:
    scratch_paths = ["build", "nix/store"] if rng.random() < 0.8 else _some(rng, _PLACES, 3)
    outputs = [f"{path}/{rng.choice(_NAMES)}{rng.choice(['', '-out'])}" for path in scratch_paths]
    request = BuildRequest(
        inputs=[_node(rng, name) for name in _some(rng, _NAMES, 4)],
        command_args=[rng.choice(_COMMANDS), "-c", "x"],
        working_dir="build" if rng.random() < 0.9 else rng.choice(_PLACES),
        scratch_paths=scratch_paths,
        inputs_dir="nix/store" if rng.random() < 0.8 else rng.choice(_DIRECTORIES),
        outputs=rng.sample(outputs, rng.randrange(len(outputs) + 1)),
    )
    if rng.random() < 0.05:
        request.additional_files.add(path=rng.choice(_PLACES))
    if rng.random() < 0.03:
        request.command_args.append("\0")
    _add_variables(rng, request)
    _add_constraints(rng, request, ["/dev/kvm"] if rng.random() < 0.2 else [])
    return request


def _node(rng: random.Random, name: str) -> Node:
    kind = rng.choice(["directory", "directory", "directory", "file", "file", "symlink"])
    if kind == "symlink":
        return Node(symlink={"name": name.encode(), "target": b"t"})
    return Node(**{kind: {"name": name.encode(), "digest": b"d" * 32}})


def _add_variables(rng: random.Random, request: BuildRequest) -> None:
    for key in sorted(rng.choices(["HOME", "PATH", "TMPDIR", "out"], k=rng.randrange(4))):
        value = rng.choice([b"/build", b"/tmp", b"/nix/store/n/bin", b""])
        request.environment_vars.add(key=key, value=value)


def _add_constraints(rng: random.Random, request: BuildRequest, ro_paths: list[str]) -> None:
    if rng.random() < 0.8:
        request.constraints.system = rng.choice(["x86_64-linux", "i686-linux"])
        request.constraints.available_ro_paths.extend(ro_paths)
        request.constraints.network_access = rng.random() < 0.3
        request.constraints.provide_bin_sh = rng.random() < 0.6


def _some(rng: random.Random, texts: list[str], most: int) -> list[str]:
    """Return at most so many of these texts, sorted by bytes, each once."""
    return sorted(rng.sample(texts, rng.randrange(most + 1)))
