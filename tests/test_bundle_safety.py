"""``specgen bundle`` among people who would harm its user: what it follows, removes and lets in."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import build_request, file, missing, require

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_client import BundleError, placing, write_bundle
from specgen_client.placing import MARKER
from specgen_core import IdMapping, SpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

OPTIONS = SpecOptions(skeleton=True, terminal=False)
ENTRIES = {MARKER, "config.json", "inputs", "root", "scratch"}
SOMEBODY = 4242


def directory(name: str) -> Node:
    return Node(directory={"name": name.encode(), "digest": b"d" * 32})


def write(path: Path, request: BuildRequest | None = None, **kwargs: Any) -> list[str]:
    request = request or build_request(inputs=[])
    return write_bundle(request, path, spec=generate(request, OPTIONS), **kwargs)


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# --- copying inputs: nothing that is put in the place of something is followed ----------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.mkdir(mode=0o700)
    (path / "file").write_text("secret")
    (path / "file").chmod(0o600)
    return path


SWAPS: list[Any] = [
    pytest.param("in/file", lambda to, secret: to.symlink_to(secret / "file"), id="file_for_link"),
    pytest.param("in", lambda to, secret: to.symlink_to(secret), id="directory_for_link"),
    pytest.param("in/sub", lambda to, secret: to.symlink_to(secret), id="inner_directory_for_link"),
    pytest.param("in/file", lambda to, secret: os.mkfifo(to), id="file_for_fifo"),
    pytest.param("in/sub", lambda to, secret: to.write_text("swapped"), id="directory_for_file"),
    pytest.param("in/file", lambda to, secret: to.mkdir(), id="file_for_directory"),
]


@pytest.mark.parametrize(("path", "put"), SWAPS)
@pytest.mark.parametrize("when", ["before", "after"], ids=["listed", "opened"])
def test_an_input_that_is_swapped(
    path: str,
    put: Callable[[Path, Path], None],
    when: str,
    secret: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the moment between two calls where it hurts most."""
    inputs = tmp_path / "inputs"
    (inputs / "in/sub").mkdir(parents=True)
    (inputs / "in/sub/file").write_text("inner")
    (inputs / "in/file").write_text("outer")
    open_ = os.open
    swapped = []

    def opened(name: str, flags: int, *args: Any, **kwargs: Any) -> int:
        hit = name == Path(path).name and flags & os.O_PATH and not swapped
        fd = open_(name, flags, *args, **kwargs) if not hit or when == "after" else None
        if hit:
            swapped.append((inputs / path).rename(tmp_path / "away"))
            put(inputs / path, secret)
        return open_(name, flags, *args, **kwargs) if fd is None else fd

    monkeypatch.setattr(os, "open", opened)
    request = build_request(inputs=[directory("in")])
    with contextlib.suppress(BundleError):
        write(tmp_path / "b", request, inputs=inputs, copy_inputs=True)
    monkeypatch.undo()

    assert swapped
    assert (secret / "file").stat().st_mode & 0o7777 == 0o600
    assert names(tmp_path) <= {"inputs", "secret", "away", "b"}
    copied = [found for found in tmp_path.glob("b/inputs/**/*") if not found.is_symlink()]
    assert not any(found.is_file() and found.read_text() == "secret" for found in copied)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def a_device(path: Path) -> None:
    require(os.geteuid() == 0, "root")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def deep(path: Path) -> None:
    before = Path.cwd()
    path.mkdir()
    os.chdir(path)
    for _ in range(500):
        os.mkdir("d")  # noqa: PTH102
        os.chdir("d")
    os.chdir(before)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(os.mkfifo, "no file, directory or symlink", id="fifo"),
        pytest.param(a_socket, "no file, directory or symlink", id="socket"),
        pytest.param(a_device, "no file, directory or symlink", id="device"),
        pytest.param(deep, "it lies too deep", id="deep"),
    ],
)
def test_an_input_that_is_not_copied(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    (tmp_path / "inputs").mkdir()
    make(tmp_path / "inputs/in")
    request = build_request(inputs=[directory("in")])
    with pytest.raises(BundleError, match=said):
        write(tmp_path / "b", request, inputs=tmp_path / "inputs", copy_inputs=True)
    assert names(tmp_path) == {"inputs"}
    subprocess.run(("rm", "-rf", tmp_path / "inputs"), check=True)  # pytest recurses


def test_inputs_behind_somebodys_link(secret: Path, tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    (tmp_path / "inputs").symlink_to(secret)
    os.chown(tmp_path / "inputs", SOMEBODY, SOMEBODY, follow_symlinks=False)
    request = build_request(inputs=[file("file")])
    with pytest.raises(BundleError, match=f"belongs to uid {SOMEBODY}, who could lead root"):
        write(tmp_path / "b", request, inputs=tmp_path / "inputs", copy_inputs=True)
    assert names(tmp_path) == {"inputs", "secret"}


def test_an_input_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "inputs/dir").mkdir(parents=True)
    request = build_request(inputs=[directory("dir"), file("none")])
    with pytest.raises(FileNotFoundError) as error:
        write(tmp_path / "b", request, inputs=tmp_path / "inputs", copy_inputs=True)
    assert error.value.filename == str(tmp_path / "inputs/none")
    assert names(tmp_path) == {"inputs"}


def test_copying_says_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "inputs/dir").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / "inputs/dir" / name).write_bytes(b"x" * 10)
    request = build_request(inputs=[directory("dir")])
    steps: list[tuple[int, int]] = []
    write(
        tmp_path / "b",
        request,
        inputs=tmp_path / "inputs",
        copy_inputs=True,
        progress=lambda *step: steps.append(step),
    )
    assert steps == [(1, 10), (2, 20), (3, 30)]


# --- on the way to DIR ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target", "place"),
    [
        pytest.param("link", "{root}", "link/b", id="absolute"),
        pytest.param("link", "../root", "link/b", id="relative"),
        pytest.param("link", "{root}/none/..", "link/none/../b", id="up"),
        pytest.param("link", "{root}/none", "link/../b", id="parent_of_what_it_leads_to"),
    ],
)
@pytest.mark.parametrize("owner", [0, SOMEBODY], ids=["of_root", "of_somebody"])
def test_a_link_on_the_way(link: str, target: str, place: str, owner: int, tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    (tmp_path / "root/none").mkdir(parents=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / link).symlink_to(target.format(root=tmp_path / "root"))
    os.chown(home / link, owner, owner, follow_symlinks=False)
    os.chown(home, owner, owner)
    if owner == 0:
        write(home / place)
        assert names(tmp_path / "root/b") == ENTRIES
        return
    with pytest.raises(BundleError, match=f"belongs to uid {SOMEBODY}, who could lead root"):
        write(home / place)
    assert names(tmp_path / "root") == {"none"}


@pytest.mark.parametrize("at", ["scratch", "inputs", "config.json"])
def test_a_workshop_that_is_swapped(
    at: str, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the parent may rename what root makes there; nothing goes elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    swapped: list[Path] = []
    calls = {"mkdir": os.mkdir, "open": os.open}

    def swapping(name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            found = list(home.glob(".b.*"))
            if path == at and found and not swapped:
                swapped.append(found[0].rename(tmp_path / "away"))
                found[0].mkdir()
                (found[0] / "bundle").symlink_to(secret)
                (found[0] / MARKER).symlink_to(secret / "file")
            return calls[name](path, *args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, swapping(name))
    (tmp_path / "inputs").mkdir()
    write(home / "b", inputs=tmp_path / "inputs", copy_inputs=True)
    monkeypatch.undo()

    assert swapped
    assert {path.name: path.read_text() for path in secret.iterdir()} == {"file": "secret"}
    assert names(home / "b") == ENTRIES
    assert list((tmp_path / "away").iterdir()) == []


# --- who may enter ----------------------------------------------------------------------

MAPPED = SpecOptions(
    skeleton=True,
    terminal=False,
    uid_mappings=(IdMapping(0, 300_000, 65_536),),
    gid_mappings=(IdMapping(0, 400_000, 65_536),),
)
TO_ITSELF = SpecOptions(
    skeleton=True,
    terminal=False,
    uid_mappings=(IdMapping(0, 0, 1), IdMapping(1000, 300_000, 1)),
    gid_mappings=(IdMapping(0, 0, 1), IdMapping(100, 400_000, 1)),
)


@pytest.mark.parametrize(
    ("options", "mode", "gid"),
    [
        pytest.param(
            SpecOptions(skeleton=True, terminal=False, rootless=False), 0o700, 0, id="rootful"
        ),
        pytest.param(OPTIONS, 0o700, 0, id="not_mapped"),
        pytest.param(
            SpecOptions(
                skeleton=True,
                terminal=False,
                uid_mappings=(IdMapping(1000, 300_000, 1),),
                gid_mappings=(IdMapping(0, 400_000, 200),),
            ),
            0o710,
            400_000,
            id="root_without_uid",
        ),
        pytest.param(
            SpecOptions(
                skeleton=True,
                terminal=False,
                uid_mappings=(IdMapping(0, 300_000, 2000),),
                gid_mappings=(IdMapping(100, 400_000, 1),),
            ),
            0o700,
            0,
            id="root_without_gid",
        ),
        pytest.param(TO_ITSELF, 0o700, 0, id="root_is_root"),
        pytest.param(MAPPED, 0o710, 400_000, id="root_is_another"),
    ],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_nobody_else_gets_in(
    options: SpecOptions, mode: int, gid: int, there: bool, tmp_path: Path
) -> None:
    require(os.geteuid() == 0, "root")
    bundle = tmp_path / "b"
    if there:
        bundle.mkdir()
        bundle.chmod(0o2777)
    request = build_request()
    write_bundle(request, bundle, spec=generate(request, options))
    status = bundle.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, gid, mode)


def test_an_acl_lets_nobody_in(tmp_path: Path) -> None:
    user_obj, user, group_obj, mask, other, no_id = 1, 2, 4, 0x10, 0x20, 0xFFFF_FFFF
    entries = [
        (user_obj, no_id),
        (user, SOMEBODY),
        (group_obj, no_id),
        (mask, no_id),
        (other, no_id),
    ]
    packed = b"".join(struct.pack("<HHI", tag, 7, id_) for tag, id_ in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", struct.pack("<I", 2) + packed)
    except OSError:
        missing("a file system with ACLs")
    write(tmp_path / "b")
    assert [name for name in os.listxattr(tmp_path / "b") if "acl" in name] == []


def test_everybodys_directory_stays_open(tmp_path: Path) -> None:
    public = tmp_path / "tmp"
    public.mkdir()
    public.chmod(0o1777)
    with pytest.raises(BundleError, match="it is everybody's, as /tmp is"):
        write(public, force=True)
    assert (stat.S_IMODE(public.stat().st_mode), names(public)) == (0o1777, set())


def test_what_is_not_written_leaves_the_directory_as_open_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "b"
    bundle.mkdir()
    bundle.chmod(0o755)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        write(bundle)
    monkeypatch.undo()
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o755
    assert names(bundle) == set()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        pytest.param([], "this user namespace has too few ids, see /proc/self/uid_map", id="auto"),
        pytest.param(
            ["--rootful"],
            "this user namespace has too few ids, see /proc/self/uid_map and gid_map: the build's"
            " uid 1000 or gid 100 is not among them",
            id="rootful",
        ),
        pytest.param(
            ["--uid-mapping", "0:300000:2000", "--gid-mapping", "0:400000:2000"],
            "this user namespace has too few ids, see /proc/self/uid_map and gid_map: the build's"
            " uid 301000 or gid 400100 is not among them",
            id="mapped",
        ),
        pytest.param(
            ["--uid-mapping", "0:300000:1", "--gid-mapping", "0:400000:1"],
            "this user namespace has too few ids, see /proc/self/gid_map: the gid 400000 of the"
            " sandbox's root is not among them (Invalid argument)",
            id="root_mapped",
        ),
    ],
)
def test_root_of_a_container_with_few_ids(flags: list[str], said: str, tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    require(shutil.which("unshare"), "unshare")
    specgen = Path(sys.executable).with_name("specgen")
    done = subprocess.run(
        ("unshare", "--user", "--map-root-user", specgen, "bundle", "-", tmp_path / "b", *flags),
        input=build_request(inputs=[]).SerializeToString(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert done.stderr.decode().endswith(f"{said}\n")
    assert names(tmp_path) == set()


# --- what --force replaces --------------------------------------------------------------


def as_ours(path: Path) -> None:
    for name in ("root", "inputs", "scratch"):
        (path / name).mkdir()
        (path / name / "precious").write_text("precious")


def with_a_spec(path: Path) -> None:
    as_ours(path)
    spec = generate(build_request(inputs=[]), OPTIONS)
    (path / "config.json").write_text(spec.json)


def with_an_empty_marker(path: Path) -> None:
    with_a_spec(path)
    (path / MARKER).touch()


def with_a_linked_marker(path: Path) -> None:
    with_a_spec(path)
    write(path.parent / "other")
    (path / MARKER).symlink_to(path.parent / "other" / MARKER)


def with_a_fifo(path: Path) -> None:
    with_a_spec(path)
    os.mkfifo(path / MARKER)


def with_a_directory(path: Path) -> None:
    with_a_spec(path)
    (path / MARKER).mkdir()


def with_somebodys_marker(path: Path) -> None:
    require(os.geteuid() == 0, "root")
    with_a_spec(path)
    write(path.parent / "other")
    shutil.copy(path.parent / "other" / MARKER, path)
    os.chown(path / MARKER, SOMEBODY, SOMEBODY)


def with_other_things(path: Path) -> None:
    (path / "thesis.txt").write_text("years of work")


@pytest.mark.parametrize(
    "make",
    [
        as_ours,
        with_a_spec,
        with_an_empty_marker,
        with_a_linked_marker,
        with_a_fifo,
        with_a_directory,
        with_somebodys_marker,
        with_other_things,
    ],
)
def test_force_leaves_alone_what_is_no_bundle_of_ours(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    bundle = tmp_path / "b"
    bundle.mkdir()
    make(bundle)
    before = sorted(bundle.rglob("*"))
    with pytest.raises(BundleError, match=r"specgen bundle did not write it"):
        write(bundle, force=True)
    assert sorted(bundle.rglob("*")) == before


def test_force_replaces_a_bundle_whose_config_was_changed(tmp_path: Path) -> None:
    write(tmp_path / "b")
    (tmp_path / "b/config.json").write_text("{}")
    write(tmp_path / "b", force=True)
    assert json.loads((tmp_path / "b/config.json").read_text())["ociVersion"]


def test_two_at_once(tmp_path: Path) -> None:
    write(tmp_path / "b")
    with (tmp_path / "b" / MARKER).open() as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another specgen bundle is writing there"):
            write(tmp_path / "b", force=True)
    write(tmp_path / "b", force=True)


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_another_run_was_faster(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking at DIR and writing there."""
    bundle = tmp_path / "b"
    if there:
        bundle.mkdir()
    real = placing._workshop if not there else placing._marked
    done: list[bool] = []

    def late(*args: Any) -> Any:
        if not done:
            done.append(True)
            write(bundle, saying("first"))
        return real(*args)

    monkeypatch.setattr(placing, real.__name__, late)
    with pytest.raises(OSError, match="ot empty") as error:
        write(bundle, saying("second"))
    assert error.value.filename == str(bundle)
    assert (bundle / "root/etc/first").exists()
    assert names(bundle) == ENTRIES
    assert names(tmp_path) == {"b"}


# --- killed -----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from specgen_client import write_bundle
from specgen_core import SpecOptions
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest

call, at, when = sys.argv[2], int(sys.argv[3]), sys.argv[4]
real = getattr(os, call)
def killed(*args, **kwargs):
    global at
    at -= 1
    if at < 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = real(*args, **kwargs)
    if at < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(os, call, killed)
request = BuildRequest.FromString(sys.stdin.buffer.read())
spec = generate(request, SpecOptions(skeleton=True, terminal=False))
write_bundle(request, Path(sys.argv[1]), spec=spec, force=True)
"""


def killed(bundle: Path, request: BuildRequest, call: str, at: int, when: str) -> None:
    done = subprocess.run(
        (sys.executable, "-c", KILLED, bundle, call, str(at), when),
        input=request.SerializeToString(),
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def saying(word: str) -> BuildRequest:
    """Return a request whose config.json and root/ both have a word."""
    return build_request(inputs=[], command_args=[word], additional_files=[{"path": f"etc/{word}"}])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(8))
def test_killed_in_the_exchange(at: int, when: str, tmp_path: Path) -> None:
    """There is never the config.json of one bundle with the rest of another."""
    bundle = tmp_path / "b"
    write(bundle, saying("old"))

    killed(bundle, saying("new"), "rename", at, when)

    config = bundle / "config.json"
    if config.exists():
        [word] = json.loads(config.read_text())["process"]["args"]
        assert names(bundle) > ENTRIES
        assert (bundle / "root/etc" / word).exists()
        assert word == ("new" if (at, when) == (7, "after") else "old")
    write(bundle, saying("again"), force=True)
    assert names(bundle) == ENTRIES
    assert (bundle / "root/etc/again").exists()
    assert names(tmp_path) == {"b"}


@pytest.mark.parametrize(
    ("call", "at", "when"),
    [
        pytest.param("mkdir", 0, "after", id="not_marked"),
        pytest.param("mkdir", 1, "after", id="marked"),
        pytest.param("mkdir", 5, "after", id="half_written"),
        pytest.param("rename", 0, "before", id="written"),
    ],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_killed_before_it_was_in_place(
    call: str, at: int, when: str, there: bool, tmp_path: Path
) -> None:
    bundle = tmp_path / "b"
    if there:
        bundle.mkdir()

    killed(bundle, saying("one"), call, at, when)

    assert not (bundle / "config.json").exists()
    assert len(list((bundle if there else tmp_path).glob(".*.????????"))) == 1
    write(bundle)
    assert names(bundle) == ENTRIES
    assert names(tmp_path) == {"b"}


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    with (path / MARKER).open() as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    ("name", "marked", "owner", "used"),
    [
        pytest.param(".b.0123abcd", False, 0, False, id="not_marked"),
        pytest.param(".b.0123abcd", True, SOMEBODY, False, id="somebodys"),
        pytest.param(".b.0123abcd", True, 0, True, id="in_use"),
        pytest.param(".b.0123abcX", True, 0, False, id="other_name"),
        pytest.param(".bb.0123abcd", True, 0, False, id="of_another_bundle"),
    ],
)
def test_leftovers_that_stay(
    name: str, marked: bool, owner: int, used: bool, tmp_path: Path
) -> None:
    require(os.geteuid() == 0, "root")
    left = tmp_path / name
    left.mkdir()
    (left / "precious").touch()
    if marked:
        write(tmp_path / "other")
        shutil.copy(tmp_path / "other" / MARKER, left)
    os.chown(left, owner, owner)
    with in_use(left) if used else contextlib.nullcontext():
        write(tmp_path / "b")
    assert (left / "precious").exists()


# --- what a spec may say ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"root": {"path": "/", "readonly": True}}, "root.path", id="root_of_the_host"),
        pytest.param({"process.cwd": "/\0"}, "process.cwd must not contain a NUL", id="cwd_nul"),
        *(
            pytest.param(
                {"mount": {"type": "tmpfs", "options": [f"mode={mode}"]}}, "octal", id=mode
            )
            for mode in ("xyz", "-1", "0o700", "7777777777777777777777", "", "8", "7_7")
        ),
        *(
            pytest.param(
                {"uidMappings": [dict(zip(("containerID", "hostID", "size"), ids))]},
                r"linux\.uidMappings\[0\] must have ids of 0 to 4294967294",
                id=f"ids_{ids}",
            )
            for ids in ((0, -1, 1), (-1, 0, 1), (0, 0, 0), (0, 2**70, 1), (0, 2**32 - 2, 2))
        ),
        pytest.param({"mount": {"source": "/a\0b"}}, r"source must not contain", id="source_nul"),
        pytest.param({"mount": {"destination": "/a\0b"}}, r"destination must not", id="place_nul"),
        pytest.param({"mount": {"destination": "/\ud800"}}, "surrogate|UTF-8", id="surrogate"),
        *(
            pytest.param({"mount": {"source": source}}, "which is no path in a bundle", id=source)
            for source in ("scratch/../../x", "scratch/", "inputs/..", "scratch//x", "./scratch/x")
        ),
        pytest.param({"process.cwd": "build"}, r"process\.cwd must be absolute", id="cwd_relative"),
        pytest.param({"process.cwd": ""}, r"process\.cwd must be absolute", id="cwd_empty"),
        pytest.param({"mounts": 5}, "Expected `array`", id="no_list"),
        pytest.param({"process.cwd": 2**70}, "Expected `str`", id="no_text"),
    ],
)
def test_a_spec_that_none_can_be_made_of(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    request = build_request(inputs=[])
    spec = json.loads(generate(request, OPTIONS).json)
    for key, value in change.items():
        if key == "mount":
            spec["mounts"].append({"destination": "/x", "type": "none", "source": "/x"} | value)
        elif key == "uidMappings":
            spec["linux"][key] = value
        elif "." in key:
            spec[key.partition(".")[0]][key.partition(".")[2]] = value
        else:
            spec[key] = value
    with pytest.raises(BundleError, match=said):
        write_bundle(request, tmp_path / "b", spec=SpecJSON(json=json.dumps(spec)))
    assert names(tmp_path) == set()
