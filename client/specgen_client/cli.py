"""The ``specgen`` command."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_commands.option_flags import (
    DEFAULTS_WITH_SERVER,
    given_options,
    spec_flags_with,
    spec_options,
)
from specgen_core import InvalidRequest, read_request
from specgen_core.answer import generate
from specgen_core.text import printable
from tvix.build.protos.build_pb2 import BuildRequest

from .bundle import BundleError, write_bundle
from .connection import (
    check_unused,
    connected,
    server_flags,
    taken_from,
)
from .console import (
    INTERRUPTED,
    NO_ANSWER,
    REFUSED,
    USAGE,
    Failed,
    copying,
    is_terminal,
    print_out,
    refused,
    warn,
    warn_of_diagnostics,
)
from .files import write_whole
from .given_spec import decoded
from .options_message import options_message
from .owners import has_user_namespace
from .request_files import FORMATS, RequestFileError, read_request_file

__all__ = ["main"]


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would exit with 1
            raise Failed("interrupted", INTERRUPTED) from None


@click.group(
    cls=_Commands, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]}
)
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
        help="Format of REQUEST.  [default: by its ending, else by its content]",
    )(command)
    file = click.Path(allow_dash=True)  # so completion offers files
    return click.argument("request_file", metavar="REQUEST", type=file)(command)


def _read_request(name: str, format_: Any) -> BuildRequest:
    try:
        return read_request_file(name, format_)
    except RequestFileError as error:
        raise Failed(str(error), USAGE) from None


_spec_flags = spec_flags_with(DEFAULTS_WITH_SERVER)
_bundle_flags = spec_flags_with(
    DEFAULTS_WITH_SERVER
    | {
        "terminal": "terminal, if this is run on one",
        "id-mappings": "auto, unless a mapping is given",
    }
)


@main.command("generate")
@_request_argument
@server_flags()
@_spec_flags
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="File to write the spec to, whole or not at all; - is standard output.  [default: -]",
)
def generate_command(
    request_file: str,
    format_: Any,
    server: str | None,
    output: str | None,
    **values: Any,
) -> None:
    """Print the spec of REQUEST; diagnostics go to standard error."""
    request = _read_request(request_file, format_)
    spec = _spec(request, server, values)
    warn_of_diagnostics(spec)
    contents = spec.json.encode()
    if output in (None, "-"):
        if is_terminal(sys.stdout):  # JSON may hold what drives one, it need not escape it
            contents = "\n".join(map(printable, spec.json.splitlines())).encode()
        print_out(contents + b"\n")
        return
    try:
        write_whole(output, contents)
    except OSError as error:
        raise Failed(f"cannot write {output or repr(output)}: {error.strerror}", USAGE) from None


@main.command("validate")
@_request_argument
def validate_command(request_file: str, format_: Any) -> None:
    """Print every rule that REQUEST breaks, one per line."""
    request = _read_request(request_file, format_)
    try:
        read_request(request)
    except InvalidRequest as invalid:
        print_out("".join(f"{printable(line)}\n" for line in str(invalid).splitlines()).encode())
        sys.exit(REFUSED)
    click.echo("valid", err=True)


@main.command("show")
@_request_argument
@server_flags()
@_spec_flags
@click.option("--all", "everything", is_flag=True, help="Shorten no value and no list.")
def show_command(
    request_file: str, format_: Any, server: str | None, everything: bool, **values: Any
) -> None:
    """Describe REQUEST's sandbox for a person to read."""
    from .show import sandbox_text  # rich is slow to load, and nobody else needs it

    spec = _spec(_read_request(request_file, format_), server, values)
    print_out(sandbox_text(spec, everything=everything).encode())


@main.command("bundle")
@_request_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@server_flags()
@_bundle_flags
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory with the inputs, each under its name.  [default: none, inputs/ stays empty]",
)
@click.option("--copy-inputs", is_flag=True, help="Copy the inputs instead of linking to them.")
@click.option("--force", is_flag=True, help="Replace a bundle in DIR that this command wrote.")
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
    """Write a complete OCI bundle for REQUEST to DIR, or nothing.

    Run it on the builder, as the user that will run the bundle. So two defaults differ from
    those of generate: ids are mapped as by --id-mappings auto, and the build gets a terminal
    only if this command has one.

    It prints the command that runs the bundle and, as comments, where the outputs will be
    and how a user removes the bundle. Warnings and diagnostics go to standard error.
    """
    if copy_inputs and inputs is None:
        raise click.UsageError("--copy-inputs goes with --inputs")
    request = _read_request(request_file, format_)
    has_terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if values["terminal"] is None:
        values["terminal"] = has_terminal
    values["skeleton"] = True
    spec = _spec(request, server, dict(values))
    mapped_otherwise = values["uid_mapping"] or values["gid_mapping"] or values["id_mappings"]
    if not mapped_otherwise and has_user_namespace(decoded(spec.json)):
        # ours, even if the server has some: it may be on another host
        spec = _spec(request, server, values | {"id_mappings": "auto"})
    try:
        with _ended_in_order(), copying() as progress:
            problems = write_bundle(
                request,
                directory,
                spec=spec,
                inputs=inputs,
                copy_inputs=copy_inputs,
                force=force,
                progress=progress,
            )
    except BundleError as error:
        raise Failed(f"cannot write {directory}: {error}", REFUSED) from None
    except OSError as error:
        where = error.filename or directory
        raise Failed(f"cannot write the bundle: {where}: {error.strerror}", USAGE) from None
    warn_of_diagnostics(spec, but_not={"needs-terminal"} if has_terminal else set())
    for problem in problems:
        warn(problem)
    how_to_run = _how_to_run(directory.resolve(), spec)
    print_out(how_to_run.encode(errors="surrogateescape"))  # the directory's name may be no UTF-8


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


def _how_to_run(directory: Path, spec: SpecJSON) -> str:
    container = re.sub(r"[^\w+.-]", "-", directory.name, flags=re.ASCII).lstrip("-.") or "build"
    lines = [shlex.join(("runc", "run", "--bundle", str(directory), container))]
    lines += (
        f"# leaves {printable(f'/{found.path} in {directory / found.bundle_path}')}"
        for found in spec.output_paths
    )
    if os.geteuid() != 0 and has_user_namespace(decoded(spec.json)):
        # what the build wrote belongs to subordinate ids
        remove = ("unshare", "--map-root-user", "--map-auto", "rm", "-rf", str(directory))
        lines.append(f"# remove it: {printable(shlex.join(remove))}")
    return "\n".join((*lines, ""))


@main.command("health")
@server_flags(default="127.0.0.1:50051")
def health_command(server: str, **values: Any) -> None:
    """Ask a server for its health: exit code 0 if it takes calls, else 1."""
    try:
        with connected(server, taken_from(values)) as client:
            serving = client.is_serving()
    except Failed as failed:
        failed.exit_code = 1  # type: ignore[misc]
        raise
    click.echo("SERVING" if serving else "NOT_SERVING", err=not serving)
    if not serving:
        sys.exit(1)


def _spec(request: BuildRequest, server: str | None, values: dict[str, Any]) -> SpecJSON:
    """Return the spec, made in process or by a server; ``values`` are those of the flags."""
    connection = taken_from(values)
    given = given_options(**values)
    options = spec_options(given)
    if server is not None:
        with connected(server, connection) as client:
            spec = client.generate(request, options=options_message(given))
        try:
            decoded(spec.json)
        except BundleError as error:
            raise Failed(f"{server} did not answer with a spec: {error}", NO_ANSWER) from None
        return spec
    check_unused(connection)
    try:
        return generate(request, options)
    except InvalidRequest as invalid:
        raise refused(str(invalid).splitlines()) from None
