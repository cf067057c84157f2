"""What ``specgen bundle`` warns of on this host; test_safety_on_runtimes.py proves some of it."""

from __future__ import annotations

import os
import pwd
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support import assert_has_table_of, build_request, require

from specgen_client import mount_table, read_only_paths, write_bundle
from specgen_client.host_checks import HOST_RULES, host_problems
from specgen_client.host_rule import HostBuild
from specgen_client.sandbox import Sandbox
from specgen_core import IdMapping, SpecOptions, make_spec, read_request
from specgen_core.answer import generate
from specgen_core.diagnostics import CODES

LOOPS = "Too many levels of symbolic links"


def warnings(tmp_path: Path, options: SpecOptions | None = None, **fields: Any) -> list[str]:
    request = build_request(inputs=[], **fields)
    options = options or SpecOptions(skeleton=True, terminal=False, rootless=False)
    return write_bundle(request, tmp_path / "b", spec=generate(request, options))


def ro_paths(*paths: str | Path) -> dict[str, Any]:
    names = [str(path) for path in paths]
    return {"constraints": {"system": "x86_64-linux", "available_ro_paths": names}}


def about(path: str | Path, found: list[str]) -> list[str]:
    return [warning for warning in found if warning.startswith(f"{path}")]


@pytest.fixture
def looked_at(tmp_path: Path) -> Path:
    path = tmp_path / "looked-at"
    path.mkdir()
    return path


# --- the entries --------------------------------------------------------------------------


def test_the_document_has_the_table_of_the_checks() -> None:
    """SPECGEN_REWRITE=1 writes it anew."""
    page = Path(__file__).parent.parent / "docs" / "diagnostics.md"
    assert_has_table_of(page, "What `specgen bundle` says", HOST_RULES)


def test_every_check_is_whole() -> None:
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    defined = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.M)}
    codes = [rule.code for rule in HOST_RULES]
    assert len({*codes, *CODES}) == len(codes) + len(CODES)
    for rule in HOST_RULES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.code)
        assert (rule.find.__doc__ or "").strip().endswith(".")
        assert rule.proven_by
        assert {*rule.proven_by} <= defined


def test_a_warning_ends_with_its_code(tmp_path: Path) -> None:
    found = warnings(tmp_path, **ro_paths("/no/such"))
    codes = {warning.rpartition(" [")[2].removesuffix("]") for warning in found}
    assert "missing-source" in codes
    assert codes <= {rule.code for rule in HOST_RULES}


# --- read-only paths ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("missing", "is not there", id="missing"),
        pytest.param("file/below", "is not there", id="below_a_file"),
        pytest.param("dangling", "is not there", id="dangling"),
        pytest.param("loop", f"cannot be looked at by this user ({LOOPS})", id="loop"),
    ],
)
def test_a_read_only_path_that_is_not_there(
    name: str, why: str, looked_at: Path, tmp_path: Path
) -> None:
    (looked_at / "file").touch()
    (looked_at / "dangling").symlink_to("none")
    (looked_at / "loop").symlink_to("loop")
    path = looked_at / name
    [said] = about(path, warnings(tmp_path, **ro_paths(path)))
    assert said.startswith(f"{path}, to be mounted at {path}, {why}: runc and crun will fail")


@pytest.mark.parametrize(
    ("mode", "owner", "options", "can"),
    [
        pytest.param(0o700, (0, 0), {"rootless": False}, False, id="rootful_roots"),
        pytest.param(0o755, (0, 0), {"rootless": False}, True, id="rootful_open"),
        pytest.param(0o744, (0, 0), {"rootless": False}, False, id="rootful_not_to_be_entered"),
        pytest.param(0o700, (1000, 0), {"rootless": False}, True, id="rootful_own"),
        pytest.param(0o750, (0, 100), {"rootless": False}, True, id="rootful_own_group"),
        pytest.param(0o700, (0, 0), {"ids": (0, 300_000, 2000)}, False, id="mapped_roots"),
        pytest.param(0o700, (0, 300_100), {"ids": (0, 300_000, 2000)}, False, id="not_for_group"),
        pytest.param(0o750, (0, 300_100), {"ids": (0, 300_000, 2000)}, True, id="mapped_group"),
        pytest.param(0o755, (0, 0), {"ids": (0, 300_000, 2000)}, True, id="mapped_open"),
        pytest.param(0o0, (301_000, 300_100), {"ids": (0, 300_000, 2000)}, True, id="mapped_own"),
        pytest.param(
            *(0o0, (301_000, 300_100), {"ids": (0, 300_000, 2000), "drop_capabilities": True}),
            False,
            id="mapped_own_without_capabilities",
        ),
        pytest.param(0o700, (0, 0), {}, False, id="not_mapped"),
    ],
)
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["directory", "file"])
def test_a_read_only_path_that_is_closed_to_the_build(
    make: Callable[[Path], None],
    mode: int,
    owner: tuple[int, int],
    options: dict[str, Any],
    can: bool,
    looked_at: Path,
    tmp_path: Path,
) -> None:
    require(os.geteuid() == 0, "root")
    path = looked_at / "ro"
    make(path)
    if path.is_file():
        mode &= 0o666 if mode != 0o744 else 0o660
    path.chmod(mode)
    os.chown(path, *owner)
    if ids := options.get("ids"):
        mappings = (IdMapping(*ids),)
        options = {**options, "uid_mappings": mappings, "gid_mappings": mappings}
        del options["ids"]
    found = about(
        path,
        warnings(tmp_path, SpecOptions(skeleton=True, terminal=False, **options), **ro_paths(path)),
    )
    said = (
        f"{path} is closed to the build (mode {mode:o}, uid {owner[0]}, gid {owner[1]}): it will be"
        " mounted, and the build cannot look at it (permission denied) [closed-read-only-path]"
    )
    assert found == ([] if can else [said])


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path: Path) -> None:
    require(os.geteuid() == 0, "root")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("make", "place", "said"),
    [
        pytest.param(bind, "s", "has unix sockets: {made}; a build can connect", id="socket"),
        pytest.param(bind, "a/b/s", "has unix sockets: {made}; ", id="socket_deep"),
        pytest.param(bind, "", "has unix sockets: {made}; ", id="socket_itself"),
        pytest.param(device, "d", "has device nodes: {made}; a build can write", id="device"),
        pytest.param(device, "", "", id="device_itself_was_asked_for"),
        pytest.param(Path.touch, "f", "", id="file"),
        pytest.param(os.mkfifo, "f", "", id="fifo"),
        pytest.param(lambda path: path.symlink_to("/dev"), "l", "", id="link_to_devices"),
    ],
)
def test_what_is_below_a_read_only_path(
    make: Callable[[Path], None], place: str, said: str, looked_at: Path, tmp_path: Path
) -> None:
    path = looked_at / "ro"
    made = path / place
    made.parent.mkdir(parents=True, exist_ok=True)
    make(made)
    found = about(path, warnings(tmp_path, **ro_paths(path)))
    assert [warning.partition(";")[0] for warning in found] == (
        [f"{path} {said.format(made=made)}".partition(";")[0]] if said else []
    )


FUSE = os.makedev(10, 229)


@pytest.mark.parametrize(
    ("number", "options", "is_denied"),
    [
        pytest.param(FUSE, {}, True, id="no_rule"),
        pytest.param(FUSE, {"devices": ("{path}:c:10:229:rw",)}, False, id="its_own"),
        pytest.param(FUSE, {"devices": ("{path}:b:10:229:rw",)}, True, id="of_another_type"),
        pytest.param(FUSE, {"device_rules": "none"}, False, id="no_rules"),
        pytest.param(os.makedev(1, 3), {}, False, id="of_every_container"),
    ],
)
@pytest.mark.parametrize("by_link", [False, True])
def test_a_device_outside_dev(
    number: int,
    options: dict[str, Any],
    is_denied: bool,
    by_link: bool,
    looked_at: Path,
    tmp_path: Path,
) -> None:
    require(os.geteuid() == 0, "root")
    path = looked_at / "node"
    os.mknod(path, stat.S_IFCHR, number)
    path.chmod(0o666)
    if by_link:
        (looked_at / "link").symlink_to(path)
        path = looked_at / "link"
    if "devices" in options:
        options = {"devices": tuple(text.format(path=path) for text in options["devices"])}
    quiet = SpecOptions(skeleton=True, terminal=False, rootless=False)
    found = about(path, warnings(tmp_path, quiet.override(**options), **ro_paths(path)))
    said = (
        f'{path} is a device that the spec\'s rules deny: a build gets "Operation not permitted"'
        f" on runc, and on crun where that makes a cgroup. Add --device {path}:c:10:229:rw"
        " [denied-device]"
    )
    assert found == ([said] if is_denied else [])


def test_a_store_is_not_looked_through_to_its_end(
    looked_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (looked_at / str(i)).touch()
    seen: list[str] = []
    entries = read_only_paths._entries

    def counted(path: str) -> Any:
        for entry in entries(path):
            seen.append(entry[0])
            yield entry

    monkeypatch.setattr(read_only_paths, "_entries", counted)
    monkeypatch.setattr(read_only_paths, "_LOOKED_AT", 10)
    warnings(tmp_path, **ro_paths(looked_at, looked_at))
    assert len(seen) == 10


MOUNTINFO = (
    "1 0 8:1 / / rw - ext4 /dev/a rw\n"
    "2 1 0:1 / {path}/rw rw,nosuid - tmpfs tmpfs rw\n"
    "3 1 0:1 / {path}/ro ro,nosuid shared:1 - tmpfs tmpfs rw\n"
    "4 1 0:1 / {path}/file-system-ro rw - squashfs tmpfs ro\n"
    "5 1 0:1 / {path}/a\\040blank\\011tab rw - tmpfs tmpfs rw\n"
    "6 1 0:1 / {path}-beside rw - tmpfs tmpfs rw\n"
)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        pytest.param("looked-at", "{path}/a blank\\ttab, {path}/rw;", id="two"),
        pytest.param("looked-at/rw", None, id="itself"),
        pytest.param("link", "{path}/a blank\\ttab, {path}/rw;", id="by_a_link"),
    ],
)
def test_mounts_below(
    name: str, below: str | None, looked_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (looked_at / "rw").mkdir()
    (tmp_path / "link").symlink_to(looked_at)
    (tmp_path / "mountinfo").write_text(MOUNTINFO.format(path=looked_at))
    monkeypatch.setattr(mount_table, "_TABLE", tmp_path / "mountinfo")
    path = tmp_path / name
    found = about(path, warnings(tmp_path, **ro_paths(path)))
    if below is None:
        assert found == []
    else:
        shown = below.format(path=looked_at).replace("\\t", "\t")
        assert [w.startswith(f"{path} has other mounts below it: {shown}") for w in found] == [True]


# --- ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"rootless": False}, ["the build is uid 1000 of this host, bob"], id="rootful"
        ),
        pytest.param(
            {"ids": (0, 0, 65_536)},
            [
                "root of the sandbox is uid 0 of this host, root",
                "the build is uid 1000 of this host, bob",
            ],
            id="everybody",
        ),
        pytest.param({"ids": (0, 300_000, 65_536)}, [], id="nobody"),
        pytest.param(
            {"ids": (0, 500_000, 1)},
            ["root of the sandbox is uid 500000 of this host, service"],
            id="a_service",
        ),
        pytest.param({}, [], id="not_mapped"),
    ],
)
def test_a_sandbox_that_is_somebody(
    options: dict[str, Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(os.geteuid() == 0, "root")
    users = {0: "root", 1000: "bob", 500_000: "service"}
    accounts = {id_: SimpleNamespace(pw_name=name) for id_, name in users.items()}
    monkeypatch.setattr(pwd, "getpwuid", accounts.__getitem__)
    if ids := options.pop("ids", None):
        options |= {"uid_mappings": (IdMapping(*ids),), "gid_mappings": (IdMapping(*ids),)}
    found = warnings(tmp_path, SpecOptions(skeleton=True, terminal=False, **options))
    named = [
        warning.partition(", and can do here")[0] for warning in found if "of this host," in warning
    ]
    assert [name for name in named if "closed to" not in name] == said


# --- where root writes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "owner", "group", "said"),
    [
        pytest.param(0o755, 0, 0, "", id="roots"),
        pytest.param(0o775, 0, 0, "", id="for_roots_group"),
        pytest.param(0o1777, 0, 0, "", id="sticky"),
        pytest.param(0o755, 4242, 0, "is uid 4242's, who may put another", id="somebodys"),
        pytest.param(0o775, 0, 4242, "is for others to write to, who", id="for_a_group"),
        pytest.param(0o777, 0, 0, "is for others to write to, who", id="for_all"),
        pytest.param(0o1777, 4242, 0, "is uid 4242's, who may", id="somebodys_sticky"),
    ],
)
@pytest.mark.parametrize("below", ["", "root/s"], ids=["in_it", "below_it"])
def test_a_directory_of_somebody_else(
    mode: int, owner: int, group: int, said: str, below: str, tmp_path: Path
) -> None:
    require(os.geteuid() == 0, "root")
    home = tmp_path / "home"
    (home / below).mkdir(parents=True)
    home.chmod(mode)
    os.chown(home, owner, group)
    found = [w for w in warnings(home / below) if "before root runs it" in w]
    assert [warning.startswith(f"{home} {said}") for warning in found] == ([True] if said else [])


# --- the sandbox shell --------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="fifo"),
        pytest.param(Path.mkdir, id="directory"),
        pytest.param(bind, id="socket"),
        pytest.param(Path.touch, id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\x7fELF\x02\x01" + b"\xff" * 90), id="broken"),
    ],
)
def test_a_shell_that_is_none(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked into, and nothing is waited for."""
    monkeypatch.chdir(tmp_path)
    shell = tmp_path / "sh"
    make(shell)
    options = SpecOptions(skeleton=True, terminal=False, rootless=False, sandbox_shell=str(shell))
    wants_shell = {"system": "x86_64-linux", "provide_bin_sh": True}
    found = warnings(tmp_path, options, constraints=wants_shell)
    assert not any("linked dynamically" in warning for warning in found)


# --- memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(("bytes_more", "said"), [(0, []), (1, ["the build wants a host with "])])
def test_memory_that_the_host_should_have(bytes_more: int, said: list[str], tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = {"system": "x86_64-linux", "min_memory": memory + bytes_more}
    found = about("the build wants", warnings(tmp_path, constraints=wanted))
    assert [warning[: len(said[0])] for warning in found] == said


# --- the spec of another server -----------------------------------------------------------


def test_a_spec_may_lack_any_mount(tmp_path: Path) -> None:
    """Whatever another server leaves out, the checks look at what there is."""
    constraints = {"system": "x86_64-linux", "provide_bin_sh": True, "network_access": True}
    request = read_request(
        build_request(constraints=constraints | {"available_ro_paths": ["/usr"]})
    )
    spec = make_spec(request, SpecOptions(terminal=False, rootless=False))
    for left_out in range(len(spec.mounts)):
        mounts = [*spec.mounts[:left_out], *spec.mounts[left_out + 1 :]]
        build = HostBuild(
            request=request,
            spec=msgspec.structs.replace(spec, mounts=mounts),
            bundle=tmp_path / "bundle",
            inputs=tmp_path,
            copied=False,
        )
        assert all(host_problems(build))
    assert left_out > 10


def test_a_spec_may_have_its_mounts_in_another_order(tmp_path: Path) -> None:
    inputs = [{"directory": {"name": name, "digest": bytes(32)}} for name in (b"a", b"b", b"c")]
    request = read_request(build_request(inputs=inputs))
    spec = make_spec(request, SpecOptions(rootless=False))
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "sh").touch(0o755)
    by_kind = sorted(spec.mounts, key=lambda mount: mount.source.startswith("inputs/"))
    for mounts in ([*by_kind[:-3], *by_kind[:-4:-1]], [*spec.mounts[:1], *spec.mounts]):
        other = msgspec.structs.replace(spec, mounts=mounts)
        sandbox = Sandbox(request, other, tmp_path, copied=False)
        for name in "abc":
            assert sandbox.find(f"/nix/store/{name}/sh").executable
