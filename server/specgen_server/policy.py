"""What this server's operator forbids. By default nothing is, as with tvix."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

from specgen_core import Request, SpecOptions, Violation

__all__ = ["Denied", "Policy"]


class Denied(Exception):
    """The operator forbids what a call asks for; ``violations`` says what."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__(violations)
        self.violations = violations[:_MOST_DENIED]
        self.total = len(violations)


_MOST_DENIED = 100


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What calls may ask for."""

    allow_ro_paths: tuple[str, ...] = ()
    """Globs of the host paths that builds may see, ``*`` within a segment; empty allows all."""
    deny_network: bool = False
    deny_host_shell: bool = False
    no_option_overrides: bool = False

    def check_overrides(self, options: SpecOptions, own: SpecOptions, field: str) -> None:
        """Refuse options of a call's own, where they change anything; raises Denied."""
        if self.no_option_overrides and options != own:
            raise Denied([Violation(field, "this server takes no options from its callers")])

    def check(self, request: Request, options: SpecOptions, own: SpecOptions) -> None:
        """Refuse what a request, with its options, may not see of the host; raises Denied."""
        if self == _ALLOW_ALL:
            return
        constraints = request.constraints
        denied = [
            Violation(
                f"constraints.available_ro_paths[{i}]",
                f"this server allows only {', '.join(self.allow_ro_paths)}",
            )
            for i, path in enumerate(constraints.available_ro_paths)
            if not self._allows(path)
        ]
        if self.allow_ro_paths:
            denied += (
                Violation(
                    f"inputs[{i}].symlink",
                    "this server allows only some paths of the host, and a runtime mounts "
                    "whatever a symlink points to there",
                )
                for i, kind in enumerate(request.inputs.values())
                if kind == "symlink"
            )
        if constraints.network_access and self.deny_network:
            denied.append(
                Violation("constraints.network_access", "this server denies builds the network")
            )
        if constraints.provide_bin_sh:
            if self.deny_host_shell:
                denied.append(
                    Violation(
                        "constraints.provide_bin_sh", "this server denies builds the host's shell"
                    )
                )
            # a caller's own sandbox shell is one more path of the host
            elif options.sandbox_shell != own.sandbox_shell and not self._allows(
                options.sandbox_shell
            ):
                denied.append(
                    Violation(
                        "options.sandbox_shell",
                        f"this server allows only {', '.join(self.allow_ro_paths)}",
                    )
                )
        if denied:
            raise Denied(denied)

    def _allows(self, path: str) -> bool:
        if not self.allow_ro_paths:
            return True
        clean = PurePosixPath(path)
        return ".." not in clean.parts and any(map(clean.match, self.allow_ro_paths))


_ALLOW_ALL = Policy()
