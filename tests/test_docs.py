"""The docs say what is: flags, metrics and links."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support import RunningServer, rows_below

from specgen_client import SpecClient
from specgen_server.process.cli import main as specgen_server
from specgen_server.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])


def _rows(heading: str) -> list[list[str]]:
    return rows_below(DOCS / "operations.md", heading)


def _flags() -> Iterator[click.Option]:
    for param in specgen_server.params:
        if isinstance(param, click.Option) and param.name not in ("help", "version"):
            yield param


def test_operations_lists_the_flags() -> None:
    documented = [row[:2] for row in _rows("Flags and environment")]
    assert documented == [
        [
            " / ".join(f"`{name}`" for name in (*flag.opts, *flag.secondary_opts)),
            f"`SPECGEN_{str(flag.name).upper()}`",
        ]
        for flag in _flags()
    ]


def test_operations_lists_the_defaults() -> None:
    documented = {row[0].split()[0].strip("`"): row[2] for row in _rows("Flags and environment")}
    for flag in _flags():
        default = flag.to_info_dict()["default"]
        if isinstance(default, tuple):
            default = " ".join(default)
        if default is None:
            assert documented[flag.opts[0]]
        elif isinstance(default, bool):
            assert documented[flag.opts[0]] == ("on" if default else "off")
        else:
            assert documented[flag.opts[0]] == f"`{default}`"


@pytest.mark.parametrize("flag", [pytest.param(f, id=f.opts[0]) for f in _flags()])
def test_the_variables_are_read(flag: click.Option, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold click to the names in the table."""
    monkeypatch.setenv(f"SPECGEN_{str(flag.name).upper()}", "given")
    with click.Context(specgen_server, auto_envvar_prefix="SPECGEN") as context:
        assert flag.value_from_envvar(context)


def test_operations_lists_the_metrics() -> None:
    registry = CollectorRegistry()
    registry.register(Metrics())
    text = generate_latest(registry).decode()
    served = re.findall(r"^# TYPE (\w+) \w+$", text, re.MULTILINE)
    assert [row[0] for row in _rows("Metrics")] == [f"`{name}`" for name in served]


def test_the_python_calls_print_what_the_page_says(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "api.md").read_text()
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    blocks = re.findall(
        r"^```python\n(.*?)^```\n\n((?:    [^\n]*\n)*)", page, re.MULTILINE | re.DOTALL
    )
    for code, output in blocks:
        exec(code.replace("127.0.0.1:50051", server.address), names)
        assert capsys.readouterr().out == textwrap.dedent(output)
    client = names["client"]
    assert isinstance(client, SpecClient)
    client.close()


def test_metrics_named_elsewhere_exist() -> None:
    listed = {row[0].strip("`") for row in _rows("Metrics")}
    for page in PAGES:
        named = re.findall(r"`(specgen_\w+(?:_total|_seconds|_bytes|_inputs))`", page.read_text())
        assert set(named) <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_named_in_a_page_exist(page: Path) -> None:
    known = {name for flag in _flags() for name in (*flag.opts, *flag.secondary_opts)}
    for command in re.findall(r"^ *(?:\$ )?specgen-server (-.*)$", page.read_text(), re.MULTILINE):
        for name in re.findall(r"(?<!\S)(--[a-z-]+)", command):
            assert name in known


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), target
