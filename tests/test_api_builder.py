"""The shell script of docs/api.md lays the bundle that ``specgen bundle`` lays."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from google.protobuf import json_format
from runtimes import RUNC, SHELL, Mode, new_lab, nodes, require_runtime, run, script
from support import build_request, require_program, running_server

PAGE = Path(__file__).parent.parent / "docs" / "api.md"

BUILD = """
test "$(cat /build/sub/note)" = here
test "$(cat /srv/note)" = there
cat /etc/passwd > /nix/store/out
"""


def the_script() -> str:
    found = re.search(
        r"^```sh\n(# REQUEST.json INPUTS BUNDLE\n.*?)^```", PAGE.read_text(), re.M | re.S
    )
    assert found
    return found[1]


def laid(bundle: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, owner and contents of all in root/ and scratch/, and of config.json."""
    paths = (*bundle.glob("root/**/*"), *bundle.glob("scratch/**/*"), bundle / "config.json")
    return {
        str(path.relative_to(bundle)): (
            path.stat().st_mode,
            path.stat().st_uid,
            b"" if path.is_dir() else path.read_bytes(),
        )
        for path in paths
    }


def test_it_lays_what_specgen_lays(tmp_path: Path) -> None:
    require_runtime(RUNC, Mode.ROOTFUL)
    require_program("grpcurl")
    require_program("jq")
    with new_lab() as lab:
        request = build_request(
            **script(BUILD),
            inputs=nodes(lab.inputs()),
            outputs=["nix/store/out"],
            scratch_paths=["build", "nix/store"],
            additional_files=[
                {"path": "build/sub/note", "contents": b"here\n"},
                {"path": "srv/note", "contents": b"there\n"},
            ],
        )
        ours = lab.bundle(Mode.ROOTFUL, request, "--inputs", lab.inputs(), "--no-terminal")
        text = json_format.MessageToJson(request, preserving_proto_field_name=True)
        (lab.path / "request.json").write_text(text)
        theirs = lab.path / "builds" / "theirs"
        shell = ("--sandbox-shell", SHELL)
        with running_server("127.0.0.1:0", tmp_path / "log", *shell) as server:
            text = the_script().replace("127.0.0.1:50051", server.address)
            words = ("sh", "-eu", "-c", text, "sh", "request.json", str(lab.inputs()), str(theirs))
            done = subprocess.run(words, cwd=lab.path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert laid(theirs) == laid(ours)

        outcome = run(RUNC, Mode.ROOTFUL, theirs)

        assert outcome.exit_code == 0, outcome.output
        [output] = theirs.glob("scratch/*/out")
        assert "nixbld" in output.read_text()
