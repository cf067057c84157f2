"""A build's sandbox at a glance, for a person at a terminal."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import oci
from specgen_core.text import printable

__all__ = ["sandbox_text"]

_UNWRAPPED = 1_000_000
_SHOWN_CHARS = 120
_SHOWN_ARG_CHARS = 400
_SHOWN_INPUTS = 20


def sandbox_text(spec: SpecJSON, *, everything: bool = False) -> str:
    """Return what a build's sandbox is like, for standard output.

    It is as wide as the terminal and in colour where that is one. Where it is none, nothing is
    wrapped: who searches for a path finds it whole, on one line.

    Args:
        spec: what the service answered.
        everything: no long value and no long list is cut.
    """
    on_terminal = Console().is_terminal
    written = io.StringIO()  # rich would write to standard output even what it captures
    console = Console(file=written, force_terminal=on_terminal, highlight=False)
    if not on_terminal:
        console.width = _UNWRAPPED
    console.print(_Sandbox(spec, everything=everything).rendered())
    return "".join(f"{line.rstrip()}\n" for line in written.getvalue().splitlines())


class _Sandbox:
    def __init__(self, spec: SpecJSON, *, everything: bool) -> None:
        self._answer = spec
        self._spec = oci.decode(spec.json)
        self._everything = everything

    def rendered(self) -> RenderableType:
        sections: list[tuple[str, RenderableType]] = [
            ("Command", self._command()),
            ("Environment", self._environment()),
            ("Namespaces", self._namespaces()),
            (
                "Mounts, in order: a later one covers an earlier one at or above its place",
                self._mounts(),
            ),
            ("Writable", _rows((m.destination, m.source) for m in self._writable())),
            ("Outputs, and where they land in the bundle", self._outputs()),
            ("What will keep it from running", self._diagnostics()),
        ]
        return Group(
            *(
                part
                for title, body in sections
                for part in (Text(title, "bold cyan"), Padding(body, (0, 0, 1, 2), expand=False))
            )
        )

    def _command(self) -> RenderableType:
        process = self._spec.process
        words = (shlex.quote(self._cut(printable(arg), _SHOWN_ARG_CHARS)) for arg in process.args)
        user = f"uid {process.user.uid}, gid {process.user.gid}"
        terminal = "on a terminal" if process.terminal else "without a terminal"
        return Group(
            Text(" ".join(words), "bold", overflow="fold"),
            Text(f"in {printable(process.cwd)}, as {user}, {terminal}", overflow="fold"),
        )

    def _environment(self) -> RenderableType:
        table = _table()
        for entry in self._spec.process.env:
            key, _, value = entry.partition("=")
            shown = self._cut(printable(value), _SHOWN_CHARS)
            table.add_row(Text(printable(key), "green", overflow="fold"), _text(shown))
        return table if table.row_count else _nothing()

    def _namespaces(self) -> RenderableType:
        linux = self._spec.linux
        own = [printable(namespace.type) for namespace in linux.namespaces]
        lines = [f"its own: {' '.join(own)}"]
        shared = [kind for kind in ("network", "cgroup", "user") if kind not in own]
        if shared:
            lines.append(f"the host's: {' '.join(shared)}")
        if "user" in own:
            for kind, mappings in (("uid", linux.uid_mappings), ("gid", linux.gid_mappings)):
                shown = ", ".join(map(_mapping, mappings)) or "none"
                lines.append(f"{kind}s, sandbox to host: {shown}")
        return Group(*(Text(line, overflow="fold") for line in lines))

    def _mounts(self) -> RenderableType:
        parts: list[RenderableType] = []
        for are_inputs, group in groupby(self._spec.mounts, _is_input):
            mounts = list(group)
            parts.append(self._inputs(mounts) if are_inputs else _mount_rows(mounts))
        return Group(*parts)

    def _inputs(self, mounts: list[oci.Mount]) -> RenderableType:
        """Return the inputs by name: place and source differ in nothing else."""
        shown = mounts if self._everything else mounts[:_SHOWN_INPUTS]
        places = mounts[0].destination.rpartition("/")[0]
        names = [printable(mount.source.removeprefix("inputs/")) for mount in shown]
        if len(mounts) > len(shown):
            names.append(f"... and {len(mounts) - len(shown)} more: --all shows them")
        head = Text.assemble("ro  ", printable(f"{places}/NAME"), "  inputs/NAME, for each of")
        return Group(head, Padding(Group(*map(_text, names)), (0, 0, 0, 6), expand=False))

    def _writable(self) -> Iterator[oci.Mount]:
        for mount in self._spec.mounts:
            if mount.type == "none" and mount.source.startswith("scratch/"):
                yield mount

    def _outputs(self) -> RenderableType:
        return _rows((f"/{found.path}", found.bundle_path) for found in self._answer.output_paths)

    def _diagnostics(self) -> RenderableType:
        lines = [
            Text.assemble(
                (printable(found.code), "bold red"),
                f"  {printable(found.field)}\n",
                printable(found.message),
            )
            for found in self._answer.diagnostics
        ]
        return Group(*lines) if lines else Text("nothing that the request says", "green")

    def _cut(self, text: str, length: int) -> str:
        if len(text) <= length or self._everything:
            return text
        return f"{text[:length]}... ({len(text)} characters)"


def _is_input(mount: oci.Mount) -> bool:
    return mount.type == "none" and mount.source.startswith("inputs/")


def _mount_rows(mounts: list[oci.Mount]) -> RenderableType:
    table = _table()
    for mount in mounts:
        access = Text("ro") if "ro" in mount.options else Text("rw", "yellow")
        table.add_row(access, _text(printable(mount.destination)), _text(printable(mount.source)))
    return table


def _table() -> Table:
    return Table.grid(padding=(0, 2, 0, 0))


def _rows(rows: Iterable[tuple[str, str]]) -> RenderableType:
    table = _table()
    for row in rows:
        table.add_row(*(_text(printable(cell)) for cell in row))
    return table if table.row_count else _nothing()


def _text(text: str) -> Text:
    return Text(text, overflow="fold")


def _nothing() -> Text:
    return Text("none", "dim")


def _mapping(mapping: oci.IdMap) -> str:
    if mapping.size == 1:
        return f"{mapping.container_id} is {mapping.host_id}"
    last = mapping.size - 1
    return (
        f"{mapping.container_id}-{mapping.container_id + last} are "
        f"{mapping.host_id}-{mapping.host_id + last}"
    )
