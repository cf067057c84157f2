"""``specgen bundle`` and ``write_bundle``: what is written where, and what never is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import RunningServer, build_request, file, golden_case, missing, require

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_client import BundleError, write_bundle
from specgen_client.cli import main
from specgen_client.placing import MARKER
from specgen_commands.host_ids import NoSubordinateIds, host_id_mappings
from specgen_core import IdMapping, SpecOptions, scratch_path
from specgen_core.answer import generate
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

IN_NAMESPACE = SpecOptions(skeleton=True, terminal=False)
ROOTFUL = SpecOptions(skeleton=True, terminal=False, rootless=False)
ENTRIES = {MARKER, "config.json", "inputs", "root", "scratch"}
SHELL = {"system": "x86_64-linux", "provide_bin_sh": True}
NETWORK = {"system": "x86_64-linux", "network_access": True}


def directory(name: str) -> Node:
    return Node(directory={"name": name.encode(), "digest": b"d" * 32})


def ro(*paths: str) -> dict[str, Any]:
    return {"system": "x86_64-linux", "available_ro_paths": paths}


def written(tmp_path: Path, options: SpecOptions = IN_NAMESPACE, **fields: Any) -> Path:
    """Return the bundle of a request with these fields in the place of its own."""
    request = build_request(**fields)
    write_bundle(request, tmp_path / "bundle", spec=generate(request, options))
    return tmp_path / "bundle"


def tree(path: Path) -> dict[str, str | None]:
    """Return files with their contents, and directories that have nothing in them."""
    return {
        str(found.relative_to(path)): None if found.is_dir() else found.read_text()
        for found in sorted(path.rglob("*"))
        if found.is_file() or not any(found.iterdir())
    }


def command(*words: str | Path, stdin: BuildRequest | None = None) -> Result:
    data = (stdin or build_request()).SerializeToString()
    flags = ("--id-mappings", "none", "--sandbox-shell", "/bin/busybox")
    return CliRunner().invoke(main, ["bundle", "-", *map(str, words), *flags], input=data)


@pytest.fixture(autouse=True)
def any_umask() -> Any:
    """Modes are the same whatever the umask."""
    before = os.umask(0o077)
    yield
    os.umask(before)


# --- what is written ------------------------------------------------------------------


def test_whole_bundle(tmp_path: Path) -> None:
    request = build_request(
        inputs=[directory("dir"), file("file")],
        scratch_paths=["build"],
        outputs=[],
        constraints={**SHELL, **NETWORK, "available_ro_paths": ["/dev/null", "/usr/bin"]},
    )
    spec = generate(request, IN_NAMESPACE)

    write_bundle(request, tmp_path / "bundle", spec=spec)

    bundle = tmp_path / "bundle"
    assert (bundle / "config.json").read_text() == spec.json
    contents = tree(bundle)
    assert "nixbld:x:1000:100:" in str(contents.pop("root/etc/passwd"))
    assert "nixbld:x:100:" in str(contents.pop("root/etc/group"))
    assert "127.0.0.1 localhost" in str(contents.pop("root/etc/hosts"))
    assert contents.pop("root/etc/nsswitch.conf") == "hosts: files dns\nservices: files\n"
    del contents["config.json"]
    assert str(contents.pop(MARKER)).startswith("specgen-bundle: ")
    assert contents == {
        "inputs": None,
        "root/bin/sh": "",
        "root/build": None,
        "root/dev": None,
        "root/etc/resolv.conf": "",
        "root/etc/services": "",
        "root/nix/store/dir": None,
        "root/nix/store/file": "",
        "root/proc": None,
        "root/sys": None,
        "root/tmp": None,
        "root/usr/bin": None,
        scratch_path("build"): None,
    }


def test_modes(tmp_path: Path) -> None:
    bundle = written(tmp_path, additional_files=[{"path": "build/a/file", "contents": b"x"}])
    modes = {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o7777
        for path in tmp_path.rglob("*")
    }
    assert modes.pop("bundle/root/tmp") == 0o700  # as its mount has it: runc keeps this one
    assert modes.pop("bundle") == 0o700
    assert {mode for path, mode in modes.items() if (tmp_path / path).is_dir()} == {0o755}
    assert {mode for path, mode in modes.items() if (tmp_path / path).is_file()} == {0o644}
    assert (bundle / scratch_path("build") / "a/file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("options", "owner"),
    [
        pytest.param({"rootless": False}, (1000, 100), id="rootful"),
        pytest.param(
            {
                "uid_mappings": [{"container_id": 0, "host_id": 100_000, "size": 65_536}],
                "gid_mappings": [{"container_id": 0, "host_id": 200_000, "size": 65_536}],
            },
            (101_000, 200_100),
            id="mapped",
        ),
        pytest.param({}, (0, 0), id="not_mapped"),
    ],
)
def test_owner_of_scratch(options: dict[str, Any], owner: tuple[int, int], tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")  # test_runtimes.py has it for an unprivileged user
    options = {
        name: tuple(IdMapping(**m) for m in value) if name.endswith("mappings") else value
        for name, value in options.items()
    }
    bundle = written(
        tmp_path,
        SpecOptions(skeleton=True, terminal=False, **options),
        scratch_paths=["build", "build/deep/er"],
        outputs=[],
        additional_files=[{"path": "build/file"}],
    )
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in (bundle / "scratch").rglob("*")}
    assert owners == {owner}
    assert (bundle / "scratch").stat().st_uid == (bundle / "root").stat().st_uid == 0


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        pytest.param({"path": "build/x"}, f"{scratch_path('build')}/x", id="scratch"),
        pytest.param({"path": "build/sub/x/y"}, f"{scratch_path('build/sub')}/x/y", id="nested"),
        pytest.param({"path": "builder"}, "root/builder", id="beside_scratch"),
        pytest.param({"path": "etc/x/y"}, "root/etc/x/y", id="root"),
        pytest.param({"path": "etc/passwd"}, "root/etc/passwd", id="over_ours"),
    ],
)
def test_additional_file(fields: dict[str, Any], place: str, tmp_path: Path) -> None:
    bundle = written(
        tmp_path,
        scratch_paths=["build", "build/sub"],
        outputs=[],
        additional_files=[fields | {"contents": b"mine"}],
    )
    assert (bundle / place).read_bytes() == b"mine"


def test_of_equal_additional_files_the_last_stays(tmp_path: Path) -> None:
    files = [{"path": "build/x", "contents": text} for text in (b"one", b"two", b"")]
    bundle = written(tmp_path, additional_files=files)
    assert (bundle / scratch_path("build") / "x").read_bytes() == b""


def test_additional_file_below_scratch_paths_that_repeat(tmp_path: Path) -> None:
    bundle = written(
        tmp_path,
        scratch_paths=["a", "a", "a/b"],
        working_dir="a",
        outputs=[],
        additional_files=[{"path": "a/b/c", "contents": b"mine"}],
    )
    assert tree(bundle / scratch_path("a/b")) == {"c": "mine"}
    assert tree(bundle / scratch_path("a")) == {"b": None}


def test_mount_points_lie_in_the_scratch_that_covers_them(tmp_path: Path) -> None:
    """The build can then write beside them, which it cannot where the runtime makes them."""
    bundle = written(
        tmp_path,
        scratch_paths=["build", "build/a/b", "build/a/b"],
        inputs_dir="build/in",
        inputs=[file("x")],
        working_dir="build/a/work",
        outputs=[],
    )
    assert tree(bundle / scratch_path("build")) == {"a/b": None, "a/work": None, "in/x": ""}
    assert tree(bundle / scratch_path("build/a/b")) == {}


def test_what_lies_in_other_mounts_is_not_ours(tmp_path: Path) -> None:
    bundle = written(
        tmp_path,
        inputs=[directory("bin"), directory("x")],
        inputs_dir="",
        scratch_paths=["dev/shm/x", "tmp/x", "x/y"],
        working_dir="proc/self",
        constraints=SHELL,
        outputs=[],
    )
    assert tree(bundle / "root/bin") == tree(bundle / "root/dev") == tree(bundle / "root/tmp") == {}
    assert tree(bundle / "root/x") == {"y": None}  # before the input covers it


def test_every_golden_request(tmp_path: Path) -> None:
    for name in ("real_ogre-1.9.0", "deep_paths", "prefix_scratch", "unicode_names"):
        request = golden_case(name).request
        spec = generate(request, IN_NAMESPACE)
        write_bundle(request, tmp_path / name, spec=spec)
        for mount in json.loads(spec.json)["mounts"]:
            if mount["source"].startswith("scratch/"):
                assert (tmp_path / name / mount["source"]).is_dir()


# --- inputs ---------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs"
    (path / "dir/sub").mkdir(parents=True)
    (path / "dir/sub/tool").write_text("tool")
    (path / "dir/sub/tool").chmod(0o700)
    (path / "dir/link").symlink_to("/etc/passwd")
    (path / "file").write_text("file")
    (path / "another").write_text("not in the request")
    return path


WITH_INPUTS = {"inputs": [directory("dir"), file("file")]}


def test_linked_inputs(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("bundle", "--inputs", "inputs", stdin=build_request(**WITH_INPUTS))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bundle/inputs").readlink() == inputs


def test_copied_inputs(inputs: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    request = build_request(**WITH_INPUTS)
    result = command(bundle, "--inputs", inputs, "--copy-inputs", stdin=request)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (bundle / "inputs").iterdir()) == ["dir", "file"]
    assert (bundle / "inputs/dir/sub/tool").stat().st_mode & 0o777 == 0o755
    assert (bundle / "inputs/file").stat().st_mode & 0o777 == 0o644
    assert (bundle / "inputs/dir/link").readlink() == Path("/etc/passwd")


def test_an_input_that_cannot_be_copied(inputs: Path, tmp_path: Path) -> None:
    os.mkfifo(inputs / "dir/fifo")
    bundle = tmp_path / "bundle"
    request = build_request(**WITH_INPUTS)
    result = command(bundle, "--inputs", inputs, "--copy-inputs", stdin=request)
    assert result.exit_code == 1
    assert f"cannot copy {inputs}/dir/fifo: no file, directory or symlink" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inputs"]


def test_the_mount_point_of_a_symlink_is_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/to_dir").symlink_to("/usr")
    (tmp_path / "inputs/to_file").symlink_to("/etc/passwd")
    request = build_request(
        inputs=[Node(symlink={"name": name, "target": b"x"}) for name in (b"to_dir", b"to_file")],
        scratch_paths=["build"],
        outputs=[],
    )
    spec = generate(request, IN_NAMESPACE)
    write_bundle(request, tmp_path / "bundle", spec=spec, inputs=tmp_path / "inputs")
    assert (tmp_path / "bundle/root/nix/store/to_dir").is_dir()
    assert (tmp_path / "bundle/root/nix/store/to_file").is_file()


def test_what_the_host_lacks(inputs: Path, tmp_path: Path) -> None:
    request = build_request(
        inputs=[file("dir"), *(file(f"missing{i}") for i in range(7))],
        constraints={**SHELL, "available_ro_paths": ["/no/such"]},
    )
    spec = generate(
        request,
        SpecOptions(skeleton=True, terminal=False, sandbox_shell=shutil.which("bash") or ""),
    )
    problems = write_bundle(request, tmp_path / "bundle", spec=spec, inputs=inputs)
    named = ", ".join(f"missing{i}" for i in range(5))
    said = f"not in {inputs}: {named} and 2 more: runc and crun will fail [missing-input]"
    assert said in problems
    assert any(p.startswith("not of the kind that the request says") for p in problems)
    assert any(p.startswith("/no/such, to be mounted at /no/such, is not") for p in problems)
    assert any("bash is linked dynamically" in p for p in problems)


def test_a_dynamic_shell_with_its_loader_is_fine(tmp_path: Path) -> None:
    request = build_request(
        constraints={**SHELL, "available_ro_paths": ["/lib", "/lib64", "/usr/lib"]}
    )
    spec = generate(
        request,
        SpecOptions(skeleton=True, terminal=False, sandbox_shell=shutil.which("bash") or ""),
    )
    problems = write_bundle(request, tmp_path / "bundle", spec=spec)
    assert not any("linked dynamically" in problem for problem in problems)


def test_empty_inputs_are_said(tmp_path: Path) -> None:
    request = build_request(inputs=[file("a")])
    problems = write_bundle(request, tmp_path / "b", spec=generate(request, IN_NAMESPACE))
    assert problems[0].startswith("inputs/ is empty: lay the 1 inputs there")


# --- where it is not written ----------------------------------------------------------


def test_never_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/mine").write_text("mine")
    result = command(tmp_path / "bundle")
    assert result.exit_code == 2
    assert f"{tmp_path}/bundle: is not empty; --force replaces the bundle in it" in result.output
    assert tree(tmp_path) == {"bundle/mine": "mine"}


def test_an_empty_directory_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    inode = Path().stat().st_ino
    assert command(".").exit_code == 0
    assert Path().stat().st_ino == inode
    assert {p.name for p in Path().iterdir()} == ENTRIES


def test_force_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert command(bundle).exit_code == 0
    (bundle / "mine").write_text("mine")
    (bundle / scratch_path("build") / "left").write_text("by a build")
    (bundle / "inputs").rmdir()
    (bundle / "inputs").symlink_to(tmp_path)
    result = command(bundle, "--force")
    assert result.exit_code == 0, result.output
    assert not (bundle / "inputs").is_symlink()
    assert (bundle / "mine").read_text() == "mine"
    assert tree(bundle / scratch_path("build")) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_force_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").write_text("precious")
    bundle = tmp_path / "bundle"
    assert command(bundle).exit_code == 0
    for name in ("inputs", "root", "scratch"):
        shutil.rmtree(bundle / name)
        (bundle / name).symlink_to(tmp_path / "elsewhere")
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to(tmp_path / "elsewhere/precious")
    assert command(bundle, "--force").exit_code == 0
    assert tree(tmp_path / "elsewhere") == {"precious": "precious"}
    assert not any(path.is_symlink() for path in bundle.iterdir())


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
def test_a_link_is_no_directory(force: bool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bundle").symlink_to("elsewhere")
    result = command(tmp_path / "bundle", *(["--force"] if force else []))
    assert result.exit_code == 1
    assert "is a symbolic link: name the directory itself" in result.output
    assert tree(tmp_path) == {"elsewhere": None, "bundle": None}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        pytest.param("file", "Not a directory", id="a_file"),
        pytest.param("file/bundle", "Not a directory", id="in_a_file"),
        pytest.param("missing/bundle", "No such file or directory", id="no_parent"),
    ],
)
def test_no_place_for_it(place: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = command(tmp_path / place)
    assert result.exit_code == 2
    assert said in result.output
    assert tree(tmp_path) == {"file": "mine"}


def test_inputs_of_the_bundle_that_is_replaced(tmp_path: Path) -> None:
    assert command(tmp_path / "bundle").exit_code == 0
    result = command(tmp_path / "bundle", "--inputs", tmp_path / "bundle/inputs", "--force")
    assert result.exit_code == 1
    assert "the bundle that is to be replaced" in result.output
    assert (tmp_path / "bundle/inputs").is_dir()


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_nothing_half_written(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    if there:
        assert command(bundle).exit_code == 0
        (bundle / "root/old").touch()
    before = tree(tmp_path)

    rename = os.rename

    def full(source: str, target: str, **directories: int) -> None:
        if target in ("root", "bundle"):
            raise OSError(28, "No space left on device", target)
        rename(source, target, **directories)

    monkeypatch.setattr(os, "rename", full)
    result = command(bundle, "--force")
    monkeypatch.undo()

    assert result.exit_code == 2
    assert "No space left on device" in result.output
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_nothing_half_written_by_what_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    (inputs / "dir").mkdir(parents=True)
    (tmp_path / "file").touch()
    for i in range(20_000):
        os.link(tmp_path / "file", inputs / f"dir/{i}")
    work = tmp_path / "work"
    work.mkdir()
    words = (
        "bundle",
        "-",
        work / "b",
        "--inputs",
        inputs,
        "--copy-inputs",
        "--id-mappings",
        "none",
    )
    with subprocess.Popen(
        (sys.executable, "-c", "from specgen_client.cli import main; main()", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(build_request(inputs=[directory("dir")]).SerializeToString())
        process.stdin.close()
        deadline = time.monotonic() + 20
        while not list(work.glob(".b.*/bundle/inputs/dir/*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(8))
def test_an_interrupted_exchange_is_undone(
    at: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    assert command(bundle).exit_code == 0
    (bundle / "root/old").touch()
    before = tree(tmp_path)

    rename = os.rename
    renamed = count()

    def interrupted(source: str, target: str, **directories: int) -> None:
        now = next(renamed) == at
        if not now or when == "after":
            rename(source, target, **directories)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    result = command(bundle, "--force")
    monkeypatch.undo()

    assert result.exit_code == 130
    assert result.stderr == "specgen: interrupted\n"
    assert tree(tmp_path) == before


def test_root_does_not_write_in_the_directory_of_somebody_else(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    os.chown(bundle, 1000, 100)
    for force in ([], ["--force"]):
        result = command(bundle, *force)
        assert result.exit_code == 1
        assert f"cannot write {bundle}: it belongs to uid 1000, who could" in result.output
        assert tree(tmp_path) == {"bundle": None}
    os.chown(bundle, 0, 100)
    assert command(bundle).exit_code == 0


def test_what_is_mounted_in_a_bundle_is_not_removed(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    bundle = tmp_path / "b undle"
    assert command(bundle).exit_code == 0
    (bundle / "inputs/x").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    subprocess.run(("mount", "--bind", tmp_path / "precious", bundle / "inputs/x"), check=True)
    try:
        result = command(bundle, "--force")
    finally:
        subprocess.run(("umount", bundle / "inputs/x"), check=True)
    assert result.exit_code == 1
    assert f"{bundle}/inputs/x is a mount point: unmount it first" in result.output
    assert (tmp_path / "precious/file").exists()


# --- what cannot be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param(
            {"additional_files": [{"path": "a"}, {"path": "a/b"}]},
            "additional_files[1].path: a/b lies in additional_files[0], a file",
            id="file_in_file",
        ),
        pytest.param(
            {"additional_files": [{"path": "nix"}]},
            "additional_files[0].path: nix lies where the scratch path /nix/store needs a dir",
            id="file_at_directory",
        ),
        pytest.param(
            {"additional_files": [{"path": "build"}]},
            "additional_files[0].path: build lies where the scratch path /build needs a directory",
            id="file_at_scratch",
        ),
        pytest.param(
            {"inputs": [directory("a")], "additional_files": [{"path": "nix/store/a/b"}]},
            "additional_files[0].path: nix/store/a/b lies at or in the input /nix/store/a",
            id="file_in_input",
        ),
        pytest.param(
            {"additional_files": [{"path": "tmp/x"}]},
            "additional_files[0].path: tmp/x lies at or in the runtime's /tmp",
            id="file_in_tmp",
        ),
        pytest.param(
            {"scratch_paths": ["a/" * 10_000 + "a", "build"], "outputs": []},
            "is longer than a path can be",
            id="path_too_long",
        ),
    ],
)
def test_conflicts(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    result = command(tmp_path / "bundle", stdin=build_request(**fields))
    assert result.exit_code == 1
    assert said in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_path_in_a_file_is_left_out(tmp_path: Path) -> None:
    """The runtimes fail, as a diagnostic says; the rest of the bundle is there to look at."""
    fields = {"inputs": [file("x")], "inputs_dir": "", "scratch_paths": ["x/y"], "outputs": []}
    result = command(tmp_path / "bundle", stdin=build_request(**fields))
    assert result.exit_code == 0
    assert "[shadowed-scratch]" in result.output
    assert (tmp_path / "bundle" / "root" / "x").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: a.root_entries.add(bundle_path="root/../../x"), id="up"),
        pytest.param(lambda a: a.root_entries.add(bundle_path="/x"), id="absolute"),
        pytest.param(lambda a: a.root_entries.add(bundle_path="inputs/x"), id="elsewhere"),
        pytest.param(lambda a: a.root_entries.add(bundle_path="config.json"), id="config"),
        pytest.param(
            lambda a: a.root_entries.add(bundle_path="root/x", mode=0o4755, kind="file"), id="mode"
        ),
        pytest.param(lambda a: a.root_entries.add(bundle_path="root/x", kind="pipe"), id="kind"),
        pytest.param(lambda a: a.scratch_dirs.add(bundle_path="scratch/../x"), id="scratch"),
        pytest.param(
            lambda a: a.additional_files.add(path="x", bundle_path="root/x"), id="one_file_more"
        ),
        pytest.param(lambda a: a.ClearField("root_entries"), id="no_root_entries"),
    ],
)
def test_an_answer_cannot_lead_out_of_the_bundle(change: Any, tmp_path: Path) -> None:
    request = build_request()
    answer = generate(request, IN_NAMESPACE)
    change(answer)
    with pytest.raises(BundleError, match=r"^the answer "):
        write_bundle(request, tmp_path / "bundle", spec=answer)
    assert list(tmp_path.iterdir()) == []


def test_a_spec_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no config\.json of this service"):
        write_bundle(build_request(), tmp_path / "bundle", spec=SpecJSON(json="{}"))


# --- the command ----------------------------------------------------------------------


def test_what_it_prints(tmp_path: Path) -> None:
    request = build_request(outputs=["nix/store/a\nb", "nix/store/out"])
    result = command(tmp_path / "a bundle", stdin=request)
    bundle = tmp_path / "a bundle"
    store = bundle / scratch_path("nix/store")
    assert result.stdout.splitlines() == [
        f"runc run --bundle '{bundle}' a-bundle",
        f"# leaves /nix/store/a\\nb in {store}/a\\nb",
        f"# leaves /nix/store/out in {store}/out",
    ]


def test_a_directory_whose_name_is_not_utf8(tmp_path: Path) -> None:
    bundle = tmp_path / os.fsdecode(b"b\xff")
    result = command(bundle)
    assert result.exit_code == 0, result.output
    shown = os.fsencode(bundle)
    lines = result.stdout_bytes.splitlines()
    assert lines[0] == b"runc run --bundle '" + shown + b"' b-"
    assert lines[1].startswith(
        b"# leaves /nix/store/out in " + os.fsencode(tmp_path) + b"/b\\udcff"
    )
    assert (bundle / "config.json").is_file()


def test_ids_are_mapped_and_there_is_no_terminal(tmp_path: Path) -> None:
    try:
        expected = host_id_mappings()
    except NoSubordinateIds:
        missing("subordinate ids")
    data = build_request().SerializeToString()
    result = CliRunner().invoke(main, ["bundle", "-", str(tmp_path / "b")], input=data)
    assert result.exit_code == 0, result.output
    spec = json.loads((tmp_path / "b/config.json").read_text())
    assert [m["hostID"] for m in spec["linux"]["uidMappings"]] == [m.host_id for m in expected[0]]
    assert spec["process"]["terminal"] is False


def test_the_spec_of_a_server(server: RunningServer, tmp_path: Path) -> None:
    request = build_request()
    result = command(tmp_path / "b", "--server", server.address, stdin=request)
    assert result.exit_code == 0, result.output
    options = SpecOptions(skeleton=True, terminal=False, sandbox_shell="/bin/busybox")
    assert (tmp_path / "b/config.json").read_text() == generate(request, options).json


def test_a_refused_request(tmp_path: Path) -> None:
    result = command(tmp_path / "b", stdin=build_request(working_dir="/"))
    assert result.exit_code == 1
    assert "the request was refused:\n  working_dir: must be relative" in result.output
    assert list(tmp_path.iterdir()) == []


def test_copies_go_with_inputs(tmp_path: Path) -> None:
    result = command(tmp_path / "b", "--copy-inputs")
    assert result.exit_code == 2
    assert "--copy-inputs goes with --inputs" in result.output
