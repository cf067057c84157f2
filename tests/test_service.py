"""The service: in process through grpcio-testing, and over a real socket, alike."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc_testing
import pytest
from conftest import SERVICE, in_process_server
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from support import RunningServer, build_request, golden_case, large_request, running_server

import specgen_server.rpc.service
from specgen.v1.specgen_pb2 import (
    GenerateSpecsRequest,
    GenerateSpecsResponse,
    IdMapping,
    SpecJSON,
    SpecOptions,
)
from specgen.v1.specgen_pb2_grpc import SpecServiceStub
from specgen_core import IdMapping as OwnIdMapping
from specgen_core import SpecOptions as OwnSpecOptions
from specgen_core.answer import answer_bytes, generate
from specgen_server.rpc.server import Server
from specgen_server.settings import Settings
from specgen_server.telemetry.stats import CallRecord
from tvix.build.protos.build_pb2 import BuildRequest

UNARY = "/specgen.v1.SpecService/GenerateSpec"
BULK = "/specgen.v1.SpecService/GenerateSpecs"
DEFAULTS = OwnSpecOptions()
ROOTFUL = OwnSpecOptions(rootless=False)
SECONDS = 20.0

Metadata = Sequence[tuple[str, str]]


@dataclass
class Answer:
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    responses: list[Any] = field(default_factory=list)
    trailers: dict[str, Any] | None = None
    """None from grpcio-testing, whose abort drops them."""

    def violates(self, expected: list[tuple[str, str]]) -> bool:
        """Whether google.rpc.BadRequest in the status details, where seen, says just this."""
        return self.trailers is None or self.violations == expected

    @property
    def violations(self) -> list[tuple[str, str]]:
        """What the status details say: (field, description) each."""
        assert self.trailers is not None
        status = Status.FromString(self.trailers["grpc-status-details-bin"])
        assert (status.code, status.message) == (self.code.value[0], self.details)
        bad_request = BadRequest()
        [detail] = status.details
        assert detail.Unpack(bad_request)
        return [(v.field, v.description) for v in bad_request.field_violations]


class Caller(Protocol):
    def unary(self, request: BuildRequest, metadata: Metadata = ()) -> Answer: ...
    def bulk(self, requests: Sequence[GenerateSpecsRequest], metadata: Metadata = ()) -> Answer: ...


class InProcess:
    def __init__(self, server: grpc_testing.Server) -> None:
        self._server = server

    def unary(self, request: BuildRequest, metadata: Metadata = ()) -> Answer:
        method = SERVICE.methods_by_name["GenerateSpec"]
        wire = request.SerializeToString()
        rpc = self._server.invoke_unary_unary(method, metadata, wire, None)
        response, _, code, details = rpc.termination()
        return Answer(code, details, [SpecJSON.FromString(response)] if response else [])

    def bulk(self, requests: Sequence[GenerateSpecsRequest], metadata: Metadata = ()) -> Answer:
        method = SERVICE.methods_by_name["GenerateSpecs"]
        rpc = self._server.invoke_stream_stream(method, metadata, None)
        responses = []
        try:
            for request in requests:
                rpc.send_request(request.SerializeToString())
                responses.append(GenerateSpecsResponse.FromString(rpc.take_response()))
        except ValueError:
            pass  # it has ended
        else:
            rpc.requests_closed()
        _, code, details = rpc.termination()
        return Answer(code, details, responses)


class Socket:
    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self._stub = SpecServiceStub(channel)

    def unary(self, request: BuildRequest, metadata: Metadata = ()) -> Answer:
        return ended(
            lambda: self._stub.GenerateSpec.with_call(request, metadata=metadata, timeout=SECONDS)
        )

    def bulk(self, requests: Sequence[GenerateSpecsRequest], metadata: Metadata = ()) -> Answer:
        call = self._stub.GenerateSpecs(iter(requests), metadata=metadata, timeout=SECONDS)
        return ended_stream(call)


def ended(make_call: Callable[[], tuple[Any, Any]]) -> Answer:
    try:
        response, call = make_call()
    except grpc.RpcError as error:
        return Answer(error.code(), error.details(), [], dict(error.trailing_metadata()))
    return Answer(call.code(), call.details(), [response], dict(call.trailing_metadata()))


def ended_stream(call: Any) -> Answer:
    responses = []
    try:
        for response in call:
            responses.append(response)
    except grpc.RpcError:
        pass  # the call says which
    return Answer(call.code(), call.details(), responses, dict(call.trailing_metadata()))


@pytest.fixture(params=["in_process", "socket"])
def caller(request: pytest.FixtureRequest, way: str) -> Caller:
    if request.param == "in_process":
        return InProcess(request.getfixturevalue("in_process"))
    return Socket(request.getfixturevalue("channel"))


def with_options(value: str) -> Metadata:
    return (("specgen-options", value),)


# --- GenerateSpec ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["minimal", "three_node_kinds", "json_escapes", "real_stdenv"])
def test_spec(caller: Caller, name: str) -> None:
    request = golden_case(name).request

    answer = caller.unary(request)

    assert (answer.code, answer.details) == (grpc.StatusCode.OK, "")
    assert answer.responses == [generate(request, DEFAULTS)]


def test_diagnostics_come_along(caller: Caller) -> None:
    [spec] = caller.unary(build_request()).responses

    found = {(diagnostic.code, diagnostic.field) for diagnostic in spec.diagnostics}
    assert ("no-id-mappings", "options.uid_mappings") in found
    assert ("needs-terminal", "options.terminal") in found


def test_refused(caller: Caller) -> None:
    answer = caller.unary(build_request(working_dir="/a/../", command_args=[]))

    leading, slash, dots = (
        f'{rule}, is "/a/../"'
        for rule in (
            "must be relative to the sandbox's root, without a leading slash",
            "must not have a doubled or trailing slash",
            'must not have "." or ".." as a segment',
        )
    )
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.details == (
        "4 violations, the first: command_args: must name the command to run, is empty"
    )
    assert answer.violates(
        [
            ("command_args", "must name the command to run, is empty"),
            ("working_dir", leading),
            ("working_dir", slash),
            ("working_dir", dots),
        ]
    )
    assert answer.responses == []


def test_trailers_hold_however_much_is_wrong(channel: grpc.Channel) -> None:
    paths = [f"/{i}/" + "\u20ac" * 4000 for i in range(2000)]

    answer = Socket(channel).unary(build_request(scratch_paths=paths))

    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    sent = answer.violations
    assert 0 < len(sent) <= 50
    assert sum(len(f.encode()) + len(d.encode()) for f, d in sent) <= 8 * 1024
    assert answer.details.endswith(" more do not fit)")


# --- options in metadata --------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        pytest.param('{"rootless": false}', ROOTFUL, id="rootful"),
        pytest.param('{"terminal": false}', OwnSpecOptions(terminal=False), id="no_terminal"),
        pytest.param(
            '{"cgroupNamespace": false}',
            OwnSpecOptions(cgroup_namespace=False),
            id="camel_case_as_protojson_has_it",
        ),
        pytest.param(
            '{"sandbox_shell": "/bin/b\\u00fcsh"}',
            OwnSpecOptions(sandbox_shell="/bin/büsh"),
            id="shell",
        ),
        pytest.param(
            '{"uid_mappings": [{"host_id": 1000, "size": 1}, {"container_id": 1000, '
            '"host_id": 100000, "size": 1}]}',
            OwnSpecOptions(uid_mappings=(OwnIdMapping(0, 1000, 1), OwnIdMapping(1000, 100000, 1))),
            id="mappings",
        ),
        pytest.param("{}", DEFAULTS, id="nothing"),
        pytest.param('{"rootless": null}', DEFAULTS, id="null_is_not_set"),
    ],
)
def test_options(caller: Caller, entry: str, options: OwnSpecOptions) -> None:
    request = golden_case("network_bin_sh_ro_paths").request

    answer = caller.unary(request, with_options(entry))

    assert answer.code is grpc.StatusCode.OK
    assert answer.responses == [generate(request, options)]


UNREADABLE = (
    'must be specgen.v1.SpecOptions as ProtoJSON, such as {"rootless": false}; its fields are '
    "rootless, sandbox_shell, terminal, cgroup_namespace, uid_mappings, gid_mappings, profile, "
    "nofile, drop_capabilities, tmp_mode, devices, device_rules, resources, cgroups_path, seccomp, "
    "personality, skeleton"
)


@pytest.mark.parametrize("method", ["unary", "bulk"])
@pytest.mark.parametrize(
    ("metadata", "violation"),
    [
        pytest.param(
            with_options("rootful"), ("specgen-options", UNREADABLE), id="unreadable_json"
        ),
        pytest.param(with_options(""), ("specgen-options", UNREADABLE), id="empty"),
        pytest.param(
            with_options('{"rootfull": true}'), ("specgen-options", UNREADABLE), id="unknown_field"
        ),
        pytest.param(
            with_options('{"rootless": "no"}'), ("specgen-options", UNREADABLE), id="wrong_type"
        ),
        pytest.param(
            with_options("[" * 5000), ("specgen-options", UNREADABLE), id="deeper_than_python"
        ),
        pytest.param(
            with_options('{"sandbox_shell": "\\ud800"}'),
            ("specgen-options", UNREADABLE),
            id="unpaired_surrogate",
        ),
        pytest.param(
            with_options('{"uid_mappings": [{"size": 4294967296}]}'),
            ("specgen-options", UNREADABLE),
            id="number_too_large",
        ),
        pytest.param(
            (*with_options("{}"), *with_options("{}")),
            ("specgen-options", "is given more than once: put all options into one entry"),
            id="twice",
        ),
        pytest.param(
            with_options('{"sandbox_shell": ""}'),
            (
                "options.sandbox_shell",
                "must be a path on the host, not empty, without a NUL byte",
            ),
            id="shell_empty",
        ),
        pytest.param(
            with_options('{"rootless": false, "uid_mappings": [{"size": 1}]}'),
            (
                "options.uid_mappings",
                "must be empty for a rootful spec, which has no user namespace: "
                "leave them out, or set rootless",
            ),
            id="mapping_for_rootful",
        ),
        pytest.param(
            with_options('{"gid_mappings": [{"host_id": 5}]}'),
            ("options.gid_mappings[0].size", "must be at least 1"),
            id="mapping_without_size",
        ),
    ],
)
def test_options_refused(
    caller: Caller, method: str, metadata: Metadata, violation: tuple[str, str]
) -> None:
    if method == "unary":
        answer = caller.unary(build_request(), metadata)
    else:
        answer = caller.bulk([GenerateSpecsRequest(requests=[build_request()])], metadata)

    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.details == ": ".join(violation)
    assert answer.violates([violation])
    assert answer.responses == []


def test_other_metadata_is_nobodys_business(caller: Caller) -> None:
    answer = caller.unary(build_request(), (("x-request-id", "{"), ("x-request-id", "{")))

    assert answer.code is grpc.StatusCode.OK


@pytest.fixture
def mapped_server() -> grpc_testing.Server:
    mapped = OwnSpecOptions(
        sandbox_shell="/server/sh", terminal=False, uid_mappings=(OwnIdMapping(0, 5, 1),)
    )
    return in_process_server(Settings(options=mapped))


@pytest.mark.parametrize(
    ("metadata", "options"),
    [
        pytest.param(
            (),
            OwnSpecOptions(
                sandbox_shell="/server/sh", terminal=False, uid_mappings=(OwnIdMapping(0, 5, 1),)
            ),
            id="as_they_are",
        ),
        pytest.param(
            with_options('{"rootless": false}'),
            OwnSpecOptions(rootless=False, sandbox_shell="/server/sh", terminal=False),
            id="mappings_stay_behind",
        ),
        pytest.param(
            with_options('{"uid_mappings": [{"size": 9}], "terminal": true}'),
            OwnSpecOptions(sandbox_shell="/server/sh", uid_mappings=(OwnIdMapping(0, 0, 9),)),
            id="overridden",
        ),
    ],
)
def test_options_of_the_server(
    mapped_server: grpc_testing.Server, metadata: Metadata, options: OwnSpecOptions
) -> None:
    request = golden_case("bin_sh").request

    answer = InProcess(mapped_server).unary(request, metadata)

    assert answer.responses == [generate(request, options)]


def test_options_by_flags_and_environment(
    tmp_path: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECGEN_SANDBOX_SHELL", "/of/the/environment")
    request = golden_case("bin_sh").request
    options = OwnSpecOptions(
        rootless=False, terminal=False, cgroup_namespace=False, sandbox_shell="/of/the/environment"
    )

    with (
        running_server(
            "127.0.0.1:0",
            tmp_path / "log",
            way,
            "--rootful",
            "--no-terminal",
            "--no-cgroup-namespace",
        ) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        answer = Socket(channel).unary(request)

    assert answer.responses == [generate(request, options)]


# --- GenerateSpecs --------------------------------------------------------------------


def results_of(answer: Answer) -> list[list[str]]:
    """Return for each response what each of its results is: its cwd, or a code."""
    return [
        [
            json.loads(result.spec.json)["process"]["cwd"]
            if result.HasField("spec")
            else Code.Name(result.error.code)
            for result in response.results
        ]
        for response in answer.responses
    ]


def in_dir(path: str) -> BuildRequest:
    return build_request(working_dir=path)


def test_bulk_keeps_order_and_errors_stay_in_their_place(caller: Caller) -> None:
    chunks = [
        GenerateSpecsRequest(requests=[in_dir("a"), in_dir("/"), in_dir("b")]),
        GenerateSpecsRequest(requests=[in_dir("//")]),
        GenerateSpecsRequest(requests=[in_dir("c")]),
    ]

    answer = caller.bulk(chunks)

    assert (answer.code, answer.details) == (grpc.StatusCode.OK, "")
    assert results_of(answer) == [["/a", "INVALID_ARGUMENT", "/b"], ["INVALID_ARGUMENT"], ["/c"]]


def test_bulk_error_says_what_the_unary_error_says(caller: Caller) -> None:
    request = build_request(command_args=[], outputs=["elsewhere"])

    alone = caller.unary(request)
    bulk = caller.bulk([GenerateSpecsRequest(requests=[request])])

    error = bulk.responses[0].results[0].error
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, alone.details)
    assert [v.field for v in error.violations] == ["command_args", "outputs[0]"]
    assert alone.violates([(v.field, v.description) for v in error.violations])


def test_bulk_spec_is_the_unary_spec(caller: Caller) -> None:
    request = golden_case("real_ogre-1.9.0").request

    alone = caller.unary(request)
    bulk = caller.bulk([GenerateSpecsRequest(requests=[request])])

    assert bulk.responses[0].results[0].spec == alone.responses[0]


def test_bulk_options_of_a_message_win_over_metadata(caller: Caller) -> None:
    request = golden_case("bin_sh").request
    chunks = [
        GenerateSpecsRequest(requests=[request]),
        GenerateSpecsRequest(requests=[request], options=SpecOptions(rootless=True)),
        GenerateSpecsRequest(requests=[request], options=SpecOptions(terminal=False)),
        GenerateSpecsRequest(requests=[request]),
    ]
    metadata = with_options('{"rootless": false, "sandbox_shell": "/of/metadata"}')
    rootful = OwnSpecOptions(rootless=False, sandbox_shell="/of/metadata")
    rootless = OwnSpecOptions(sandbox_shell="/of/metadata")
    rootful_no_tty = OwnSpecOptions(rootless=False, terminal=False, sandbox_shell="/of/metadata")

    answer = caller.bulk(chunks, metadata)

    assert [response.results[0].spec for response in answer.responses] == [
        generate(request, options) for options in (rootful, rootless, rootful_no_tty, rootful)
    ]


def test_bulk_options_of_a_message_that_cannot_be(caller: Caller) -> None:
    """They are an error of each build of their message, and the stream goes on."""
    bad = SpecOptions(rootless=False, uid_mappings=[IdMapping(size=1)])
    chunks = [
        GenerateSpecsRequest(requests=[in_dir("a")]),
        GenerateSpecsRequest(requests=[in_dir("b")], options=bad),
        GenerateSpecsRequest(requests=[in_dir("c")]),
    ]

    answer = caller.bulk(chunks)

    assert answer.code is grpc.StatusCode.OK
    assert results_of(answer) == [["/a"], ["INVALID_ARGUMENT"], ["/c"]]
    (result,) = answer.responses[1].results
    assert result.error.message.startswith("options.uid_mappings: must be empty for a rootful spec")


def test_bulk_without_messages(caller: Caller) -> None:
    answer = caller.bulk([])

    assert (answer.code, answer.responses) == (grpc.StatusCode.OK, [])


def test_bulk_with_an_empty_message(caller: Caller) -> None:
    chunks = [GenerateSpecsRequest(), GenerateSpecsRequest(requests=[in_dir("a")])]

    answer = caller.bulk(chunks)

    assert answer.code is grpc.StatusCode.OK
    assert results_of(answer) == [[], ["/a"]]


def test_bulk_with_too_many_builds_in_a_message(caller: Caller) -> None:
    answer = caller.bulk([GenerateSpecsRequest(requests=[BuildRequest()] * 10_001)])

    assert (answer.code, answer.responses) == (grpc.StatusCode.RESOURCE_EXHAUSTED, [])
    assert answer.details == (
        "requests: must have at most 10000 elements, which is this server's limit (--max-builds)"
    )


def test_bulk_response_beyond_the_limit_ends_the_call(way: str) -> None:
    with own_server(way, max_message_bytes=30_000) as (channel, _):
        answer = Socket(channel).bulk([GenerateSpecsRequest(requests=[in_dir("a")] * 50)])

    assert (answer.code, answer.responses) == (grpc.StatusCode.RESOURCE_EXHAUSTED, [])
    assert answer.details.endswith(" and this server sends at most 30000 (--max-message-bytes)")


def test_bulk_answers_each_message_before_the_next(channel: grpc.Channel) -> None:
    answered = threading.Semaphore(0)

    def one_at_a_time() -> Iterator[GenerateSpecsRequest]:
        for i in range(3):
            yield GenerateSpecsRequest(requests=[in_dir(f"{i}")])
            assert answered.acquire(timeout=SECONDS)

    seen = 0
    for response in SpecServiceStub(channel).GenerateSpecs(one_at_a_time(), timeout=SECONDS):
        assert len(response.results) == 1
        seen += 1
        answered.release()

    assert seen == 3


# --- what only a socket can carry -----------------------------------------------------


def raw_unary(channel: grpc.Channel, wire: bytes) -> Answer:
    call = channel.unary_unary(UNARY, response_deserializer=SpecJSON.FromString)
    return ended(lambda: call.with_call(wire, timeout=SECONDS))


def raw_bulk(channel: grpc.Channel, *wire: bytes) -> Answer:
    call = channel.stream_stream(BULK, response_deserializer=GenerateSpecsResponse.FromString)
    return ended_stream(call(iter(wire), timeout=SECONDS))


def chunk_of(*elements: bytes) -> bytes:
    """Return a GenerateSpecsRequest of these elements, which need not parse."""
    assert all(len(element) < 128 for element in elements)
    return b"".join(b"\x0a" + bytes([len(element)]) + element for element in elements)


BAD_UTF8 = b"\x1a\x01\xff"  # working_dir
GARBAGE = [
    pytest.param(b"\xff\xff\xff", id="garbage"),
    pytest.param(BAD_UTF8, id="bad_utf8"),
    pytest.param(b"\x12\x7fcut short", id="cut_short"),
]
NOT_A_REQUEST = (
    "not a tvix.build.v1.BuildRequest: the bytes do not parse, "
    "or a string field in them is not UTF-8"
)


@pytest.mark.parametrize("wire", GARBAGE)
def test_unreadable_request(channel: grpc.Channel, wire: bytes) -> None:
    answer = raw_unary(channel, wire)

    assert (answer.code, answer.details) == (grpc.StatusCode.INVALID_ARGUMENT, NOT_A_REQUEST)


@pytest.mark.parametrize("wire", GARBAGE)
def test_bulk_unreadable_request_in_its_place(channel: grpc.Channel, wire: bytes) -> None:
    good = BuildRequest(command_args=["true"], working_dir="a").SerializeToString()

    answer = raw_bulk(channel, chunk_of(good, wire, good), chunk_of(good))

    assert answer.code is grpc.StatusCode.OK
    assert results_of(answer) == [["/a", "INVALID_ARGUMENT", "/a"], ["/a"]]
    assert answer.responses[0].results[1].error.message == NOT_A_REQUEST


def test_bulk_unreadable_message_ends_the_stream(channel: grpc.Channel) -> None:
    good = BuildRequest(command_args=["true"], working_dir="a").SerializeToString()

    answer = raw_bulk(channel, chunk_of(good), b"\xff\xff", chunk_of(good))

    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.details == (
        "not a specgen.v1.GenerateSpecsRequest: the bytes do not parse, "
        "or a string field in them is not UTF-8"
    )
    assert results_of(answer) == [["/a"]]


def test_unknown_method(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/specgen.v1.SpecService/Nonsense")

    answer = ended(lambda: call.with_call(b"", timeout=SECONDS))

    assert answer.code is grpc.StatusCode.UNIMPLEMENTED


def test_large_request(channel: grpc.Channel) -> None:
    request = large_request(inputs=10_000)
    assert request.ByteSize() > 4 * 1024 * 1024

    answer = Socket(channel).unary(request)

    assert answer.code is grpc.StatusCode.OK
    assert answer.responses == [generate(request, DEFAULTS)]
    assert answer.responses[0].ByteSize() > 4 * 1024 * 1024


def test_cancelled_streams_leave_no_thread_behind(channel: grpc.Channel) -> None:
    """More of them than the server has threads, and it still answers."""

    def endless(stopped: threading.Event) -> Iterator[GenerateSpecsRequest]:
        while not stopped.wait(0.001):
            yield GenerateSpecsRequest(requests=[in_dir("a")])

    for _ in range(20):
        stopped = threading.Event()
        call = SpecServiceStub(channel).GenerateSpecs(endless(stopped), timeout=SECONDS)
        assert len(next(call).results) == 1
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED
        stopped.set()

    assert Socket(channel).unary(build_request()).code is grpc.StatusCode.OK


def test_work_for_a_cancelled_stream_stops(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builds of a chunk that nobody waits for any more are not generated."""
    started, cancelled = threading.Event(), threading.Event()
    generated = []

    def slow(request: Any, options: Any) -> Any:
        generated.append(request)
        started.set()
        assert cancelled.wait(SECONDS)
        return answer_bytes(request, options)

    monkeypatch.setattr(specgen_server.rpc.service, "answer_bytes", slow)
    with own_server(way, quick=False) as (channel, server):
        chunk = GenerateSpecsRequest(requests=[build_request()] * 1000)
        call = SpecServiceStub(channel).GenerateSpecs(iter([chunk]), timeout=SECONDS)
        assert started.wait(SECONDS)
        call.cancel()
        assert server.stop(0)(SECONDS)  # so that the server knows
        while server.on_lane and any(each._stays for each in server._way.open):
            time.sleep(0.001)
        cancelled.set()
        deadline = time.monotonic() + SECONDS
        while server.in_flight:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert len(generated) == 1


# --- unexpected errors ----------------------------------------------------------------


@contextlib.contextmanager
def own_server(
    way: str, records: list[CallRecord] | None = None, **settings: Any
) -> Iterator[tuple[grpc.Channel, Server]]:
    """Run a real server in this process, so that its insides can be replaced."""
    enter = (records if records is not None else []).append
    server = Server(Settings(call_lane=way == "--call-lane", **settings), enter=enter)
    address = server.bind("127.0.0.1:0")
    server.start()

    with grpc.insecure_channel(address) as channel:
        yield channel, server
    assert server.stop(0)(SECONDS)


@pytest.fixture(params=["in_process", "socket"])
def caller_of_this_process(request: pytest.FixtureRequest, way: str) -> Iterator[Caller]:
    """Like ``caller``, but the server behind the socket runs in this process."""
    if request.param == "in_process":
        yield InProcess(request.getfixturevalue("in_process"))
        return
    with own_server(way) as (channel, _):
        yield Socket(channel)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that fails for one working directory, in a way nobody foresaw."""

    def answer_or_fail(request: Any, options: Any) -> Any:
        if request.working_dir == "broken":
            raise ZeroDivisionError("a secret of the server")
        return answer_bytes(request, options)

    monkeypatch.setattr(specgen_server.rpc.service, "answer_bytes", answer_or_fail)


INTERNAL = "internal error; the server's log has more"


def is_own_traceback(record: logging.LogRecord) -> bool:
    """Whether it is the server's: grpcio-testing logs from threads of earlier tests, too."""
    return record.name.startswith("specgen_server") and bool(record.exc_info)


def logged_tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.exc_text or logging.Formatter().formatException(record.exc_info)
        for record in caplog.records
        if is_own_traceback(record)
    ]


@pytest.mark.usefixtures("broken")
def test_unexpected_error(caller_of_this_process: Caller, caplog: pytest.LogCaptureFixture) -> None:
    answer = caller_of_this_process.unary(in_dir("broken"))

    assert (answer.code, answer.details) == (grpc.StatusCode.INTERNAL, INTERNAL)
    assert "grpc-status-details-bin" not in (answer.trailers or {})
    [traceback] = logged_tracebacks(caplog)
    assert "answer_or_fail" in traceback
    assert "ZeroDivisionError: a secret of the server" in traceback


@pytest.mark.usefixtures("broken")
def test_the_line_of_an_unexpected_error_names_the_call(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server(way) as (channel, _):
        named = (("x-request-id", "build-17"),)
        Socket(channel).unary(in_dir("broken"), named)
        Socket(channel).bulk([GenerateSpecsRequest(requests=[in_dir("broken")])], named)

    lines = [record for record in caplog.records if is_own_traceback(record)]
    assert [getattr(line, "request_id", None) for line in lines] == ["build-17", "build-17"]


@pytest.mark.usefixtures("broken")
def test_bulk_unexpected_error_stays_in_its_place(
    caller_of_this_process: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = [
        GenerateSpecsRequest(requests=[in_dir("a"), in_dir("broken"), in_dir("b")]),
        GenerateSpecsRequest(requests=[in_dir("c")]),
    ]

    answer = caller_of_this_process.bulk(chunks)

    assert answer.code is grpc.StatusCode.OK
    assert results_of(answer) == [["/a", "INTERNAL", "/b"], ["/c"]]
    assert answer.responses[0].results[1].error.message == INTERNAL
    assert len(logged_tracebacks(caplog)) == 1


# --- addresses ------------------------------------------------------------------------


def test_unix_socket(unix_server: RunningServer) -> None:
    assert unix_server.address.startswith("unix:///")
    with grpc.insecure_channel(unix_server.address) as channel:
        answer = Socket(channel).unary(build_request())

    assert answer.responses == [generate(build_request(), DEFAULTS)]


def test_free_port_is_printed(server: RunningServer) -> None:
    host, _, port = server.address.rpartition(":")

    assert (host, int(port) > 0) == ("127.0.0.1", True)
