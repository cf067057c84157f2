"""One layout: what the bundle writer would refuse is a diagnostic first."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from odd_requests import odd_requests
from specgen_client import BundleError
from specgen_client.skeleton import tree_of
from specgen_core import (
    InvalidRequest,
    Request,
    Skeleton,
    SpecOptions,
    diagnose,
    generate,
    make_spec,
    oci,
    read_request,
)
from specgen_core.layout import Layout
from tvix.build.protos.build_pb2 import BuildRequest

QUIET = SpecOptions(rootless=False, terminal=False)


@pytest.mark.parametrize("seed", range(6))
def test_what_the_writer_refuses_is_a_diagnostic(seed: int) -> None:
    """60 000 requests in which anything may lie over anything."""
    refused, hidden = 0, []
    for message in islice(odd_requests(random.Random(seed)), 10_000):
        try:
            request = read_request(message)
        except InvalidRequest:
            continue
        layout = Layout(request, make_spec(request, QUIET).mounts)
        skeleton = Skeleton(request, layout)
        if skeleton.conflicts or "" in skeleton.file_paths:
            refused += 1
            if not diagnose(request, QUIET):
                hidden.append(message.SerializeToString().hex())

    assert hidden == []
    assert refused > 1000


@pytest.mark.parametrize("seed", range(2))
def test_what_the_writer_refuses_is_a_diagnostic_too(seed: int) -> None:
    """It lays what the answer says: so of the same requests, it refuses no others."""
    options = QUIET.override(skeleton=True)
    refused, hidden = 0, []
    for message in islice(odd_requests(random.Random(seed)), 2000):
        try:
            answer = generate(message, options)
            tree_of(read_request(message), answer, None)
        except InvalidRequest:
            continue
        except BundleError as error:
            refused += 1
            if not answer.diagnostics:
                hidden.append((str(error), message.SerializeToString().hex()))

    assert hidden == []
    assert refused > 100


def mounts(*places: str) -> list[oci.Mount]:
    return [oci.Mount(place, "none", place) for place in places]


@pytest.mark.parametrize(
    ("path", "before", "over", "seen"),
    [
        pytest.param("/a", None, [0, 3], 3, id="at"),
        pytest.param("/a/b/c", None, [0, 1, 3], 3, id="covered_by_a_later_one_above"),
        pytest.param("/a/b/c", 3, [0, 1, 3], 1, id="before_it_was_covered"),
        pytest.param("/ab", None, [], None, id="beside"),
        pytest.param("/", None, [], None, id="root"),
        pytest.param("/d", None, [2, 4], 4, id="twice"),
        pytest.param("/d/x", 4, [2, 4], 2, id="the_first_of_two"),
        pytest.param("/a/" + "x" * 5000, None, [], None, id="longer_than_can_be"),
    ],
)
def test_layout(path: str, before: int | None, over: list[int], seen: int | None) -> None:
    layout = Layout(no_mounts(), mounts("/a", "/a/b", "/d", "/a", "/d"))

    assert layout.over(path) == over
    assert layout.seen_at(path, before=before) == seen


def test_a_mount_at_the_root_is_over_all() -> None:
    layout = Layout(no_mounts(), mounts("/a", "/"))

    assert layout.over("/") == [1]
    assert layout.over("/a/b") == [0, 1]
    assert layout.seen_at("/a/b") == 1


def no_mounts() -> Request:
    return read_request(BuildRequest(command_args=["/x"]))


def test_nothing_is_laid_in_what_is_no_directory() -> None:
    """Not even where what lies in it came first: /etc is the host's, with its own passwd."""
    constraints = {"system": "x86_64-linux", "available_ro_paths": ["/etc/a", "/etc"]}
    request = read_request(BuildRequest(command_args=["/x"], constraints=constraints))
    skeleton = Skeleton(request, Layout(request, make_spec(request, QUIET).mounts))

    assert [path for path in skeleton.entries if path.startswith("root/etc")] == [
        "root/etc/a",
        "root/etc",
    ]
