"""The ``specgen-server`` command."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from typing import Any

import click
import msgspec

from specgen_commands.option_flags import FiniteRange, given_options, spec_flags, spec_options

from ..addresses import AddressError, reserve, unix_path, without_twins
from ..policy import Policy
from ..settings import Settings
from ..telemetry.log_output import LogOutput, standard_error
from ..telemetry.logs import configure_logging, listening
from ..tls_files import CredentialsError, TlsFiles
from .reports import Report
from .signals import block_stop_signals

__all__ = ["main"]

logger = logging.getLogger(__name__)


class _OctalType(click.ParamType[int]):
    name = "OCTAL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is not a file mode such as 660", param, ctx)
        return mode


class _Guard(click.Option):
    """An option that forbids something: an empty variable would forbid nothing, in silence."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        variable = f"{ctx.auto_envvar_prefix}_{str(self.name).upper()}"
        if not (value or "").strip() and variable in os.environ:
            raise click.UsageError(
                f"{variable} is empty: give it a value, or unset it to go without {self.opts[0]}"
            )
        return value


def _file(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("it is empty, and must be a file", param=param)
    return value


_SECONDS = FiniteRange(min=0, max=7 * 86_400)
_ELEMENTS = click.IntRange(min=1, max=10_000_000)
_CALLS = click.IntRange(min=1, max=10_000)
_FILE = click.Path(dir_okay=False)


@click.command(context_settings={"auto_envvar_prefix": "SPECGEN", "show_default": True})
@click.option(
    "--listen",
    metavar="ADDRESS",
    multiple=True,
    default=("127.0.0.1:50051",),
    help="HOST:PORT or unix:///PATH. Repeatable. Port 0 takes a free one, which the log names.",
)
@click.option("--unix-mode", type=_OctalType(), default="660", help="Mode of unix sockets.")
@click.option(
    "--unix-group", metavar="NAME", help="Group of unix sockets.  [default: the server's own]"
)
@click.option(
    "--tls-cert",
    cls=_Guard,
    callback=_file,
    type=_FILE,
    help="Use TLS on tcp, with this certificate chain (PEM).",
)
@click.option(
    "--tls-key", cls=_Guard, callback=_file, type=_FILE, help="Private key of --tls-cert (PEM)."
)
@click.option(
    "--tls-client-ca",
    cls=_Guard,
    callback=_file,
    type=_FILE,
    help="Take only callers with a certificate of this CA (PEM).",
)
@spec_flags
@click.option(
    "--allow-ro-path",
    cls=_Guard,
    metavar="GLOB",
    multiple=True,
    help="Host paths that builds may see; * matches no slash. Repeatable.  [default: all]",
)
@click.option(
    "--deny-network", cls=_Guard, is_flag=True, help="Refuse builds that want the network."
)
@click.option(
    "--deny-host-shell", cls=_Guard, is_flag=True, help="Refuse builds that want /bin/sh provided."
)
@click.option(
    "--no-option-overrides", cls=_Guard, is_flag=True, help="Refuse options given with a call."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=1024),
    help="Worker processes.  [default: one per CPU; one where a unix socket is listened on]",
)
@click.option(
    "--quick/--no-quick",
    default=True,
    help="Answer routine requests from pieces of earlier answers. --no-quick gives the same"
    " answers, slower: for debugging.",
)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(min=1024, max=2**31 - 1),
    default=64 * 1024 * 1024,
    help="Largest message, in either direction.",
)
@click.option(
    "--max-elements",
    type=_ELEMENTS,
    default=15_000,
    help="Most inputs, arguments, variables or needles in one request.",
)
@click.option(
    "--max-paths",
    type=_ELEMENTS,
    default=4_096,
    help="Most scratch paths, outputs, read-only paths or additional files in one request.",
)
@click.option(
    "--max-builds",
    type=_ELEMENTS,
    default=10_000,
    help="Most requests in one message of GenerateSpecs.",
)
@click.option(
    "--max-in-flight",
    type=_CALLS,
    default=256,
    help="Most GenerateSpec calls at a time in one worker, without the small ones that the call"
    " lane answers at once; more get RESOURCE_EXHAUSTED.",
)
@click.option(
    "--max-streams",
    type=_CALLS,
    default=64,
    help="Most GenerateSpecs calls at a time in one worker, likewise.",
)
@click.option(
    "--call-lane/--no-call-lane",
    default=True,
    help="Take calls from gRPC core's own queue on one thread, or by grpc.server() on a thread"
    " for each.",
)
@click.option(
    "--max-connection-age",
    type=_SECONDS,
    default=0.0,
    help="Seconds until a client is asked to reconnect, for rebalancing; 0 for never.",
)
@click.option(
    "--drain-delay",
    type=_SECONDS,
    default=0.0,
    help="When stopping: seconds in which health says NOT_SERVING and calls are still taken.",
)
@click.option(
    "--grace",
    type=_SECONDS,
    default=30.0,
    help="When stopping: seconds that calls in flight then get to finish.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics at this address.")
@click.option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    default="human",
    help="How log lines are written, for a person or a program.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="At info and debug, each call has a line.",
)
@click.version_option(package_name="tvix-specgen", allow_from_autoenv=False)
@click.help_option("-h", "--help", allow_from_autoenv=False)
def main(
    tls_cert: str | None, tls_key: str | None, tls_client_ca: str | None, **values: Any
) -> None:
    """Serve specgen.v1.SpecService: a tvix BuildRequest in, an OCI runtime spec out.

    Every option can be given as an environment variable too: SPECGEN_LISTEN,
    SPECGEN_SANDBOX_SHELL and so on; several values in one are separated by blanks.

    SIGTERM, SIGINT or SIGHUP stops it gracefully, a second one at once.
    """
    _require_extra()
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if tls_client_ca and not tls_cert:
        raise click.UsageError("--tls-client-ca needs --tls-cert and --tls-key")
    tls = TlsFiles(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key else None
    policy = _policy(**{name: values.pop(name) for name in _POLICY_FLAGS})
    workers = _workers(values.pop("workers"), values["listen"])
    own = {name: values.pop(name) for name in Settings.__struct_fields__ if name in values}
    settings = Settings(
        tls=tls,
        policy=policy,
        workers=workers,
        options=spec_options(given_options(**values)),
        **own,
    )
    block_stop_signals()
    output = standard_error(alone=True)
    configure_logging(settings.log_format, settings.log_level, output)
    code = _run(settings, output)
    output.flush()
    os._exit(code)  # threads may still hold calls of clients that do not go


def _require_extra() -> None:
    for module in ("grpc_reflection", "prometheus_client"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise click.ClickException(
                f"not installed: {module}; pip install 'tvix-specgen[server]' brings it"
            )


_POLICY_FLAGS = ("allow_ro_path", "deny_network", "deny_host_shell", "no_option_overrides")


def _policy(*, allow_ro_path: tuple[str, ...], **forbidden: bool) -> Policy:
    for glob in allow_ro_path:
        if not (glob.startswith("/") and glob.isprintable()):
            raise click.UsageError(f"--allow-ro-path {glob!r}: it must start with a slash")
    return Policy(allow_ro_paths=allow_ro_path, **forbidden)


def _workers(asked: int | None, listen: tuple[str, ...]) -> int:
    sockets = [address for address in listen if unix_path(address)]
    if asked is None:
        return 1 if sockets else len(os.sched_getaffinity(0))
    if asked > 1 and len(sockets) == len(listen):
        raise click.UsageError("a unix socket takes one worker: leave out --workers")
    return asked


def _run(settings: Settings, output: LogOutput) -> int:
    try:
        with contextlib.ExitStack() as held:
            return _serve(settings, output, held)
    except (AddressError, OSError, RuntimeError, MemoryError) as error:
        logger.error("cannot start: %s" if not isinstance(error, AddressError) else "%s", error)
        return 1
    except CredentialsError as error:
        logger.error("%s", error)
        return 2


def _serve(settings: Settings, output: LogOutput, held: contextlib.ExitStack) -> int:
    # what a supervisor does not need, it does not load
    from ..telemetry.metrics import Metrics
    from ..telemetry.metrics_server import serve_metrics

    shared = settings.workers > 1
    if settings.tls:
        for warning in settings.tls.check():
            logger.warning("%s", warning)
    addresses = []
    for address in without_twins(settings.listen):
        reservation = reserve(address, shared=shared)
        held.callback(reservation.release)
        addresses.append(reservation.address)
    settings = msgspec.structs.replace(settings, listen=tuple(addresses))
    metrics = Metrics()
    if settings.metrics:
        serve_metrics(settings.metrics, metrics)
    if shared:
        from .supervisor import supervise

        return supervise(settings, metrics, output.take_dropped)

    from .worker import serve

    def serving(addresses: list[str]) -> None:
        for address in addresses:
            listening.info("listening on %s", address)

    def report(counted: Report) -> bool:
        metrics.add(0, counted.stats, counted.in_flight, counted.on_lane)
        return True

    return serve(
        settings,
        output=output,
        report=report if settings.metrics else None,
        serving=serving,
    )
