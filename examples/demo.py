"""One real nixpkgs build request through a real server: what ``make demo`` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).with_name("ogre-1.9.0.json")
BIN = Path(sys.executable).parent


def main() -> int:
    """Start a server, ask it, print the answer, stop it."""
    server = subprocess.Popen(
        [BIN / "specgen-server", "--listen", "127.0.0.1:0", "--rootful", "--no-terminal"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = _listening_address(server)
        asked = subprocess.run(
            [BIN / "specgen", "generate", EXAMPLE, "--server", address],
            stdout=subprocess.PIPE,
            check=True,
        )
    finally:
        server.terminate()
        server.communicate()
    spec = json.loads(asked.stdout)
    print(json.dumps(spec, indent=2), flush=True)
    request = json.loads(EXAMPLE.read_text())
    # seen last, and seen where the spec goes into a file or a pager
    print(
        f"""
That was the OCI runtime spec of {EXAMPLE.stem}, a real nixpkgs build:
{len(request["inputs"])} inputs became {len(spec["mounts"])} mounts.
It came over gRPC from a server at {address}, now stopped.

Next:
  make serve                 a server on 127.0.0.1:50051, and how to call it
  .venv/bin/specgen --help   the same in process: generate, validate, show, bundle
  README.md                  a real build with runc, in three commands""",
        file=sys.stderr,
    )
    return 0


def _listening_address(server: subprocess.Popen[str]) -> str:
    for line in server.stderr or ():
        if "listening on " in line:
            return line.split("listening on ")[1].split()[0]
    raise SystemExit(f"the server did not start: exit code {server.wait()}")


if __name__ == "__main__":
    sys.exit(main())
