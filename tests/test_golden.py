"""Fidelity: what the reference made of these requests, we make too."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support import GOLDEN, GOLDEN_NAMES, MODES, bulk_cases, golden_case

from specgen_core import SpecOptions
from specgen_core.answer import generate

BULK_SHELL = "/usr/lib/specgen/sandbox-shell"


def with_sorted_capabilities(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec with its capability lists, which are sets, in one order."""
    capabilities = spec["process"]["capabilities"]
    in_order = {kind: sorted(names) for kind, names in capabilities.items()}
    return spec | {"process": spec["process"] | {"capabilities": in_order}}


def test_all_cases_are_there() -> None:
    assert len(GOLDEN_NAMES) == 31
    assert len(bulk_cases()) == 160


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_spec(name: str, mode: str) -> None:
    case = golden_case(name)
    options = SpecOptions(rootless=mode == "rootless", sandbox_shell=case.sandbox_shell)

    got = json.loads(generate(case.request, options).json)

    got_file = GOLDEN / f"{name}.{mode}.got.json"
    got_file.unlink(missing_ok=True)
    if with_sorted_capabilities(got) != with_sorted_capabilities(case.specs[mode]):
        got_file.write_text(json.dumps(got, indent=1, ensure_ascii=False) + "\n")
        pytest.fail(f"not what the reference made, see {got_file}", pytrace=False)


@pytest.mark.parametrize("mode", MODES)
def test_real_bulk(mode: str) -> None:
    options = SpecOptions(rootless=mode == "rootless", sandbox_shell=BULK_SHELL)
    cases = bulk_cases()

    differing = [
        i for i, case in enumerate(cases) if digest_of(case.request, options) != case.digests[mode]
    ]

    assert differing == []


def digest_of(request: bytes, options: SpecOptions) -> str:
    spec = with_sorted_capabilities(json.loads(generate(request, options).json))
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_bundle_paths_are_the_sources_of_the_reference(name: str) -> None:
    """What the builder must create, and where it finds outputs, is what the spec mounts."""
    case = golden_case(name)
    sources = {
        mount["destination"]: mount["source"]
        for mount in case.specs["rootless"]["mounts"]
        if mount["source"].startswith("scratch/")
    }

    answer = generate(case.request, SpecOptions())

    scratch_dirs = [(found.path, found.bundle_path) for found in answer.scratch_dirs]
    assert scratch_dirs == [(path, sources[f"/{path}"]) for path in case.request.scratch_paths]
    output_paths = [(found.path, found.bundle_path) for found in answer.output_paths]
    assert output_paths == [(path, place_of(path, sources)) for path in case.request.outputs]


def place_of(path: str, sources: dict[str, str]) -> str:
    """Return where in the bundle a path lies: go up until something is mounted."""
    above, below = f"/{path}", ""
    while above not in sources:
        above, _, name = above.rpartition("/")
        below = f"/{name}{below}"
    return sources[above] + below


ALL_BYTES = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from support import GOLDEN_NAMES, MODES, bulk_cases, golden_case
from specgen_core.answer import generate
from specgen_core import SpecOptions

digest = hashlib.sha256()
requests = [golden_case(name).request for name in GOLDEN_NAMES]
requests += [case.request for case in bulk_cases()]
for mode in MODES:
    for request in requests:
        answer = generate(request, SpecOptions(rootless=mode == "rootless"))
        digest.update(answer.SerializeToString(deterministic=True))
print(digest.hexdigest())
"""


def test_same_bytes_in_every_interpreter() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", ALL_BYTES, str(GOLDEN.parent)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }

    assert len(digests) == 1


def test_json_is_compact() -> None:
    answer = generate(golden_case("unicode_names").request, SpecOptions())

    compact = json.dumps(json.loads(answer.json), separators=(",", ":"), ensure_ascii=False)

    assert answer.json == compact
