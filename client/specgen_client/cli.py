"""The ``specgen`` command."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from specgen.v1.specgen_pb2 import IdMapping, SpecJSON, SpecOptions
from specgen_commands.option_flags import spec_flags, spec_options
from specgen_core import InvalidRequest, oci, read_request
from specgen_core import SpecOptions as OptionsInProcess
from specgen_core.answer import generate
from specgen_core.text import printable
from tvix.build.protos.build_pb2 import BuildRequest

from .bundle import BundleError, write_bundle
from .client import (
    DeadlineExceeded,
    RequestRefused,
    ServerUnavailable,
    SpecClient,
    SpecgenError,
    Tls,
)
from .files import write_whole
from .request_files import FORMATS, RequestFileError, read_request_file

__all__ = ["main"]

REFUSED = 1
USAGE = 2
NO_ANSWER = 3
INTERRUPTED = 128 + signal.SIGINT


class _Failed(click.ClickException):
    """Ends the command with a sentence on standard error and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        click.echo(f"specgen: {self.message}", err=True)


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would exit with 1
            raise _Failed("interrupted", INTERRUPTED) from None


@click.group(cls=_Commands, context_settings={"show_default": True})
@click.version_option(package_name="tvix-specgen")
def main() -> None:
    """Turn tvix build requests into OCI runtime specs, the config.json of runc and crun.

    REQUEST is a file, or - for standard input, with a tvix.build.v1.BuildRequest: binary
    protobuf (.pb, .binpb), ProtoJSON (.json) or text format (.txtpb, .textproto).

    Exit codes: 0 done; 1 the request was refused; 2 wrong usage, or a file that cannot be
    read or written; 3 the server cannot be reached, or did not answer in time; 130
    interrupted by Ctrl-C.
    """


def _request_argument(command: Any) -> Any:
    command = click.option(
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        help="What REQUEST is written in, instead of what its ending says.",
    )(command)
    return click.argument("request_file", metavar="REQUEST")(command)


def _read_request(name: str, format_: Any) -> BuildRequest:
    try:
        return read_request_file(name, format_)
    except RequestFileError as error:
        raise _Failed(str(error), USAGE) from None


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def _connection_flags(command: Any) -> Any:
    for flag in (
        click.option("--tls-key", type=_FILE, help="The private key of --tls-cert (PEM)."),
        click.option("--tls-cert", type=_FILE, help="Our certificate, for a server that asks."),
        click.option("--tls-ca", type=_FILE, help="Trust what this signed (PEM); implies --tls."),
        click.option("--tls", is_flag=True, help="Speak TLS, and trust the system's roots."),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            help="Seconds to wait for the server.",
        ),
    ):
        command = flag(command)
    return command


def _check_address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    if not value.strip():
        raise click.BadParameter("it is empty, and must be an address", ctx, param)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{printable(value)} is not UTF-8", ctx, param) from None
    return value


def _server_flags(command: Any) -> Any:
    return click.option(
        "--server",
        metavar="ADDRESS",
        callback=_check_address,
        help="Ask the server there: HOST:PORT, unix:///PATH or dns:///NAME:PORT."
        "  [default: none, the spec is made in process]",
    )(_connection_flags(command))


@contextmanager
def _client(
    server: str,
    *,
    timeout: float,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Iterator[SpecClient]:
    """Yield a client; its errors end the command."""
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    files = Tls(tls_ca, tls_cert, tls_key) if tls or tls_ca or tls_cert else None
    try:
        with SpecClient(server, tls=files, timeout=timeout) as connected:
            yield connected
    except OSError as error:
        raise _Failed(f"cannot read {error.filename}: {error.strerror}", USAGE) from None
    except RequestRefused as refused:
        raise _refused(_violations(refused)) from None
    except (ServerUnavailable, DeadlineExceeded) as error:
        raise _Failed(f"no answer from {server}: {error.details}", NO_ANSWER) from None
    except SpecgenError as error:
        raise _Failed(f"the server at {server} failed: {error}", NO_ANSWER) from None


def _violations(refused: RequestRefused) -> list[str]:
    """Return what the server says, with how many more violations than it had room for."""
    violations = [f"{v.field}: {v.description}" for v in refused.violations]
    if not violations:
        return [refused.details]
    total = re.match(r"([0-9]{1,9}) violations, the first: ", refused.details)
    more = int(total[1]) - len(violations) if total else 0
    if more > 0:
        violations.append(f"and {more} more violations")
    return violations


@main.command("generate")
@_request_argument
@_server_flags
@spec_flags
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="Write config.json here, whole or not at all.  [default: standard output]",
)
def generate_command(
    request_file: str,
    format_: Any,
    server: str | None,
    output: str | None,
    **values: Any,
) -> None:
    """Print the spec of REQUEST; what would keep it from running goes to standard error."""
    request = _read_request(request_file, format_)
    spec = _spec(request, server, values)
    _warn(spec)
    contents = spec.json.encode()
    if output is None:
        _print(contents + b"\n")
        return
    try:
        write_whole(output, contents)
    except OSError as error:
        raise _Failed(f"cannot write {output or repr(output)}: {error.strerror}", USAGE) from None


@main.command("validate")
@_request_argument
def validate_command(request_file: str, format_: Any) -> None:
    """Print every rule that REQUEST breaks, a line each."""
    request = _read_request(request_file, format_)
    try:
        read_request(request)
    except InvalidRequest as invalid:
        _print(f"{invalid}\n".encode())
        sys.exit(REFUSED)
    click.echo("valid", err=True)


@main.command("show")
@_request_argument
@_server_flags
@spec_flags
@click.option("--all", "everything", is_flag=True, help="Cut no long value and no long list.")
def show_command(
    request_file: str, format_: Any, server: str | None, everything: bool, **values: Any
) -> None:
    """Print what REQUEST's sandbox is like: for a person."""
    from .show import sandbox_text  # rich is slow to load, and nobody else needs it

    spec = _spec(_read_request(request_file, format_), server, values)
    _print(sandbox_text(spec, everything=everything).encode())


@main.command("bundle")
@_request_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@_server_flags
@spec_flags
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where the inputs are, each under its name.  [default: none, inputs/ stays empty]",
)
@click.option("--copy-inputs", is_flag=True, help="Copy the inputs instead of linking --inputs.")
@click.option("--force", is_flag=True, help="Replace the bundle that is in DIR.")
def bundle_command(
    request_file: str,
    format_: Any,
    directory: Path,
    server: str | None,
    inputs: Path | None,
    copy_inputs: bool,
    force: bool,
    **values: Any,
) -> None:
    """Write a complete OCI bundle for REQUEST to DIR, whole or not at all.

    To be run on the builder, by the user that will run the bundle. So other than for
    generate, ids are mapped by --id-mappings auto where nothing else is said, and the build
    gets a terminal only where this has one.

    It prints the command that runs the bundle, and as comments where the outputs come to
    lie; what will keep it from running goes to standard error.
    """
    if copy_inputs and inputs is None:
        raise click.UsageError("--copy-inputs goes with --inputs")
    request = _read_request(request_file, format_)
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if values["terminal"] is None:
        values["terminal"] = has_terminal
    spec = _spec(request, server, dict(values))
    mapped_otherwise = values["uid_mapping"] or values["gid_mapping"] or values["id_mappings"]
    if not mapped_otherwise and _has_user_namespace(spec):
        # ours, even if the server has some: it may be on another host
        spec = _spec(request, server, values | {"id_mappings": "auto"})
    try:
        with _ended_in_order():
            problems = write_bundle(
                request, directory, spec=spec, inputs=inputs, copy_inputs=copy_inputs, force=force
            )
    except BundleError as error:
        raise _Failed(f"cannot write {directory}: {error}", REFUSED) from None
    except OSError as error:
        where = error.filename or directory
        raise _Failed(f"cannot write the bundle: {where}: {error.strerror}", USAGE) from None
    _warn(spec, but_not={"needs-terminal"} if has_terminal else set())
    for problem in problems:
        click.echo(f"specgen: warning: {printable(problem)}", err=True)
    how_to_run = _how_to_run(directory.resolve(), spec)
    _print(how_to_run.encode(errors="surrogateescape"))  # the directory's name may be no UTF-8


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let signals end the block as an exception does, so that it cleans up, once."""
    signals = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN  # as nohup has it, or a shell's &
    ]

    def end(got: int, _: Any) -> NoReturn:
        for number in signals:  # a second Ctrl-C must not end the cleaning up
            signal.signal(number, signal.SIG_IGN)
        if got == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + got)

    before = [signal.signal(number, end) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


def _has_user_namespace(spec: SpecJSON) -> bool:
    return any(namespace.type == "user" for namespace in oci.decode(spec.json).linux.namespaces)


def _how_to_run(directory: Path, spec: SpecJSON) -> str:
    container = re.sub(r"[^\w+.-]", "-", directory.name, flags=re.ASCII).lstrip("-.") or "build"
    lines = [shlex.join(("runc", "run", "--bundle", str(directory), container))]
    lines += (
        f"# leaves {printable(f'/{found.path} in {directory / found.bundle_path}')}"
        for found in spec.output_paths
    )
    return "\n".join((*lines, ""))


@main.command("health")
@click.option(
    "--server",
    metavar="ADDRESS",
    callback=_check_address,
    default="127.0.0.1:50051",
    help="HOST:PORT, unix:///PATH or dns:///NAME:PORT.",
)
@_connection_flags
def health_command(server: str, **connection: Any) -> None:
    """Ask a server whether it takes calls, for probes: exit code 0 if it does, else 1."""
    try:
        with _client(server, **connection) as client:
            serving = client.is_serving()
    except _Failed as failed:
        raise _Failed(failed.message, 1) from None
    click.echo("SERVING" if serving else "NOT_SERVING", err=not serving)
    if not serving:
        sys.exit(1)


_CONNECTION = ("timeout", "tls", "tls_ca", "tls_cert", "tls_key")


def _spec(request: BuildRequest, server: str | None, values: dict[str, Any]) -> SpecJSON:
    """Return the spec, made in process or by a server; ``values`` are those of the flags."""
    connection = {name: values.pop(name) for name in _CONNECTION}
    options = spec_options(**values)
    if server is not None:
        with _client(server, **connection) as client:
            return client.generate(request, options=_options_message(values, options))
    try:
        return generate(request, options)
    except InvalidRequest as invalid:
        raise _refused(str(invalid).splitlines()) from None


def _options_message(values: dict[str, Any], options: OptionsInProcess) -> SpecOptions:
    """Return just what the flags say; the server has its own for the rest."""
    message = SpecOptions()
    for field in ("rootless", "sandbox_shell", "terminal", "cgroup_namespace"):
        if values[field] is not None:
            setattr(message, field, values[field])
    for field in ("uid_mappings", "gid_mappings"):
        getattr(message, field).extend(
            IdMapping(container_id=m.container_id, host_id=m.host_id, size=m.size)
            for m in getattr(options, field)
        )
    return message


def _refused(violations: list[str]) -> _Failed:
    listed = "".join(f"\n  {violation}" for violation in violations)
    return _Failed(f"the request was refused:{listed}", REFUSED)


def _warn(spec: SpecJSON, but_not: Collection[str] = ()) -> None:
    for found in spec.diagnostics:
        if found.code in but_not:
            continue
        message = printable(f"{found.field}: {found.message} [{found.code}]")
        click.echo(f"specgen: warning: {message}", err=True)


def _print(contents: bytes) -> None:
    """Write to standard output; who reads it may leave early."""
    if sys.stdout is None:  # it was closed before we came
        raise _Failed("cannot write standard output: it is closed", USAGE)
    try:
        sys.stdout.buffer.write(contents)
        sys.stdout.buffer.flush()
    except OSError as error:
        # else the interpreter complains when it closes standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise _Failed(f"cannot write standard output: {error.strerror}", USAGE) from None
