"""What this host lacks for a spec to run on it: what only its builder can know.

What can be known from the request alone is a diagnostic of the spec instead.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from specgen_core import Request, oci

__all__ = ["host_problems"]

_NAMED = 5


def host_problems(
    request: Request, spec: oci.Spec, bundle: Path, inputs: Path | None
) -> Iterator[str]:
    """Yield sentences about what will keep a spec from running on this host.

    Args:
        request: the request that the spec is of.
        spec: its config.json.
        bundle: where the bundle will lie.
        inputs: the directory that becomes the bundle's inputs/; None if that stays empty.
    """
    yield from _inputs(request, inputs)
    in_user_namespace = any(namespace.type == "user" for namespace in spec.linux.namespaces)
    binds = [m for m in spec.mounts if m.type == "none" and Path(m.source).is_absolute()]
    for mount in binds:
        if not Path(mount.source).exists():
            yield (
                f"{mount.source}, to be mounted at {mount.destination}, is not there: runc and "
                "crun will fail"
            )
            continue
        if in_user_namespace and (flags := _flags_to_keep(mount)):
            yield (
                f"{mount.source} lies on a file system mounted {','.join(flags)}: runc 1.1 cannot "
                "mount it into a user namespace (operation not permitted), crun can"
            )
    if in_user_namespace and os.geteuid() == 0:
        yield from _length_of_sources(spec, bundle)
    shell = next((m for m in binds if m.destination == "/bin/sh"), None)
    if shell is not None and request.constraints.provide_bin_sh:
        loader = _loader(shell.source)
        if loader and not any(_lies_at_or_under(loader, m.destination) for m in spec.mounts):
            yield (
                f"the sandbox shell {shell.source} is linked dynamically, and the build will not "
                f"have its {loader}: /bin/sh will not start. Name a static one, such as "
                "--sandbox-shell /usr/bin/busybox"
            )


def _inputs(request: Request, inputs: Path | None) -> Iterator[str]:
    if not request.inputs:
        return
    if inputs is None:
        yield (
            f"inputs/ is empty: lay the {len(request.inputs)} inputs there, each under its "
            "name, before the build runs"
        )
        return
    missing = [name for name in request.inputs if not (inputs / name).exists()]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        yield f"not in {inputs}: {', '.join(missing[:_NAMED])}{more}: runc and crun will fail"
    other = [
        name
        for name, kind in request.inputs.items()
        if (kind == "directory" and (inputs / name).is_file())
        or (kind == "file" and (inputs / name).is_dir())
    ]
    if other:
        yield (
            f"not of the kind that the request says, directory or file: {', '.join(other[:_NAMED])}"
            " (the mount points are as the request says): runc and crun will fail"
        )


# A user namespace may not take these away, and a bind mount that does not ask for them
# would. From mount(2) and statvfs(3).
_LOCKED_FLAGS = (
    ("nosuid", os.ST_NOSUID),
    ("nodev", os.ST_NODEV),
    ("noexec", os.ST_NOEXEC),
)


def _flags_to_keep(mount: oci.Mount) -> list[str]:
    try:
        flags = os.statvfs(mount.source).f_flag
    except OSError:
        return []
    return [n for n, flag in _LOCKED_FLAGS if flags & flag and n not in mount.options]


_SOURCES_BYTES = 65535 - 5  # a netlink attribute, less its head and a NUL


def _length_of_sources(spec: oci.Spec, bundle: Path) -> Iterator[str]:
    """Runc 1.1 hands all sources of bind mounts to its child in one message, if run by root.

    Source: runc 1.1, libcontainer/container_linux.go, bootstrapData, MountSourcesAttr.
    """
    sources = (os.fsencode(bundle / m.source) if m.type == "none" else b"" for m in spec.mounts)
    length = len(b"\0".join(sources))
    if length > _SOURCES_BYTES:
        yield (
            f"the paths of all that is mounted take {length} bytes: runc 1.1, run by root for a "
            f"build in a user namespace, takes {_SOURCES_BYTES} (larger than UINT16_MAX). Write "
            "the bundle to a directory with a shorter path, or run it as another user"
        )


_PT_INTERP = 3


def _loader(path: str) -> str:
    """Return the dynamic loader that an ELF file asks for; empty if none, or no ELF file.

    Source: elf(5), Elf32_Ehdr, Elf64_Ehdr and their program headers.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
            if head[:4] != b"\x7fELF":
                return ""
            wide = head[4] == 2
            order = "<" if head[5] == 1 else ">"
            table, *_ = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
            size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
            file.seek(table)
            headers = file.read(size * count)
            for at in range(0, len(headers), size):
                (kind,) = struct.unpack_from(order + "I", headers, at)
                if kind != _PT_INTERP:
                    continue
                word = order + ("Q" if wide else "I")
                (offset,) = struct.unpack_from(word, headers, at + (8 if wide else 4))
                (length,) = struct.unpack_from(word, headers, at + (32 if wide else 16))
                file.seek(offset)
                return file.read(min(length, 4096)).rstrip(b"\0").decode(errors="replace")
    except (OSError, struct.error, ValueError, IndexError):
        pass  # what cannot be read is for the runtime to say
    return ""


def _lies_at_or_under(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")
