"""Which diagnostics real builds get, with every profile. All of them are true.

A new one fails here: its entry is to be shown true of these builds, or mended.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support import GOLDEN, GOLDEN_NAMES, golden_case

import corpus
from specgen_core import IdMapping, SpecOptions, diagnose, read_request


def of_snix() -> list[bytes]:
    with gzip.open(GOLDEN / "snix_bulk.jsonl.gz", "rt") as lines:
        return [base64.b64decode(json.loads(line)["request_base64"]) for line in lines]


def of_golden_cases() -> list[bytes]:
    names = (name for name in GOLDEN_NAMES if name.startswith("real_"))
    return [golden_case(name).request.SerializeToString() for name in names]


CORPORA: dict[str, Callable[[], list[bytes]]] = {
    "direct_inputs": corpus.bulk,
    "closures": corpus.closures,
    "snix": of_snix,
    "golden_cases": of_golden_cases,
}
BUILDS = {"direct_inputs": 160, "closures": 120, "snix": 162, "golden_cases": 8}
OF_I686 = {"direct_inputs": 19, "closures": 10, "snix": 19}

MODES: dict[str, dict[str, Any]] = {
    "unset": {},
    "rootful": {"rootless": False, "terminal": False},
    "mapped": {
        "terminal": False,
        "uid_mappings": (IdMapping(0, 0, 1), IdMapping(1000, 100_000, 1)),
        "gid_mappings": (IdMapping(0, 0, 1), IdMapping(100, 100_000, 1)),
    },
}


def expected(name: str, profile: str, mode: str) -> Counter[str]:
    codes = Counter[str]()
    if mode == "unset":  # the defaults ask for a terminal, and for mappings that nobody gave
        codes |= dict.fromkeys(("no-id-mappings", "needs-terminal"), BUILDS[name])
    if profile != "nix":  # they see the machine of a 64-bit host, unless a profile says otherwise
        codes["needs-personality"] = OF_I686.get(name, 0)
    if name == "closures":  # bash43-042, whose output is in its own closure, as an input
        codes["read-only-output"] = 1
    return +codes


def found(requests: Iterable[bytes], options: SpecOptions) -> Counter[str]:
    return Counter(one.code for wire in requests for one in diagnose(read_request(wire), options))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("profile", ["seed", "snix", "nix"])
@pytest.mark.parametrize("name", CORPORA)
def test_real_builds(name: str, profile: str, mode: str) -> None:
    options = SpecOptions().override(profile=profile, **MODES[mode])

    assert found(CORPORA[name](), options) == expected(name, profile, mode)


@pytest.mark.parametrize("name", CORPORA)
def test_what_is_said_is_true(name: str) -> None:
    """Seen in the requests themselves, apart from the rules."""
    requests = [read_request(wire) for wire in CORPORA[name]()]
    assert len(requests) == BUILDS[name]
    systems = Counter(request.constraints.system for request in requests)
    assert systems["i686-linux"] == OF_I686.get(name, 0)
    assert systems.keys() <= {"x86_64-linux", "i686-linux"}
    are_inputs = [
        output.path
        for request in requests
        for output in request.outputs
        if output.path.removeprefix(f"{request.inputs_dir}/") in request.inputs
    ]
    bash = ["nix/store/pdwz581jbf27cm2lvmngrhnrbyd5bv7a-bash43-042"]
    assert are_inputs == (bash if name == "closures" else [])
