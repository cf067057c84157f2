"""The process section: command, environment, user, terminal, limits and capabilities."""

from __future__ import annotations

from . import oci
from .options import SpecOptions
from .request import Request

__all__ = ["BUILD_GID", "BUILD_UID", "configure_process"]

BUILD_UID = 1000
BUILD_GID = 100
NOFILE = 1024


def _in_every_set(*capabilities: str) -> oci.Capabilities:
    return oci.Capabilities(*(capabilities,) * 5)


_ROOTFUL_CAPABILITIES = _in_every_set("CAP_AUDIT_WRITE", "CAP_KILL")

# Within a user namespace of its own, root's powers end at the namespace.
_ROOTLESS_CAPABILITIES = _in_every_set(
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

_USER = oci.User(BUILD_UID, BUILD_GID)
_RLIMITS = (oci.Rlimit("RLIMIT_NOFILE", hard=NOFILE, soft=NOFILE),)


def configure_process(request: Request, options: SpecOptions) -> oci.Process:
    """Return the process section (seed: ``configure_process``)."""
    return oci.Process(
        args=request.command_args,
        env=[env_var.entry for env_var in request.environment],
        terminal=options.terminal,
        user=_USER,
        # runtime-spec, config.md: cwd "MUST be an absolute path"
        cwd="/" + request.working_dir,
        capabilities=_ROOTLESS_CAPABILITIES if options.rootless else _ROOTFUL_CAPABILITIES,
        rlimits=_RLIMITS,
        no_new_privileges=True,
    )
