"""Requests as people's bug reports have them: what each is read as, and what is said of it.

In reported_requests.json, a case has either its text, as it was sent, or the fields in which it
differs from a request that runs. It comes to diagnostics (none, where it runs), is refused with
violations, or cannot be read, for which the error says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import TESTS

from specgen_client.request_files import RequestFileError, read_request_file
from specgen_core import InvalidRequest, SpecOptions, diagnose, read_request

CASES = json.loads((TESTS / "reported_requests.json").read_text())
RUNS = {
    "command_args": ["/bin/sh", "-c", "true"],
    "working_dir": "build",
    "scratch_paths": ["build", "nix/store"],
    "inputs_dir": "nix/store",
    "inputs": [{"directory": {"name": "dG9vbHM=", "digest": "ZGRk" * 10 + "ZGQ=", "size": "1"}}],
    "environment_vars": [{"key": "PATH", "value": "L25peC9zdG9yZS90b29scw=="}],
    "constraints": {"system": "x86_64-linux", "provide_bin_sh": True},
}
QUIET = SpecOptions(rootless=False, terminal=False)


def what_is_said(file: Path) -> tuple[str, list[str] | str]:
    try:
        request = read_request(read_request_file(str(file)))
    except RequestFileError as error:
        return "unreadable", str(error)
    except InvalidRequest as error:
        return "refused", [f"{one.field}: {one.description}" for one in error.violations]
    return "diagnostics", [f"{one.code} {one.field}" for one in diagnose(request, QUIET)]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_reported_request(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    text = case["text"] if "text" in case else json.dumps(RUNS | case["fields"])
    file.write_bytes(text.encode(case.get("encoding", "utf-8")))

    kind, said = what_is_said(file)

    assert kind in case
    if kind == "unreadable":
        assert case[kind] in said
    else:
        assert said == case[kind]


def test_all_of_them_are_there() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) == 73
