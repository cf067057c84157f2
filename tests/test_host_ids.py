"""Id mappings from /etc/subuid and /etc/subgid, as subuid(5) and subgid(5) have them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from specgen_commands.host_ids import NoSubordinateIds, host_id_mappings
from specgen_core import IdMapping

ENTRY = "alice:100000:65536\n"
NOBODY = 65534


@pytest.fixture
def alice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as uid 1234, gid 2345, which is named alice."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getegid", lambda: 2345)
    monkeypatch.setattr(pwd, "getpwuid", {1234: SimpleNamespace(pw_name="alice")}.__getitem__)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwuid", {0: SimpleNamespace(pw_name="root")}.__getitem__)


def mappings(
    tmp_path: Path, subuid: str | None, subgid: str | None
) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Return the mappings by files of these contents; None leaves one out."""
    for name, contents in (("subuid", subuid), ("subgid", subgid)):
        if contents is not None:
            (tmp_path / name).write_text(contents)
    return host_id_mappings(tmp_path / "subuid", tmp_path / "subgid")


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param("alice:100000:65536\n", id="by_name"),
        pytest.param("1234:100000:65536\n", id="by_uid"),
        pytest.param("alice:100000:65536", id="no_newline"),
        pytest.param("bob:1:9\nalicia:1:9\nal:1:9\nalice:100000:65536\n", id="after_others"),
        pytest.param("alice:1:0\nalice:100000:65536\n", id="after_an_empty_range"),
        pytest.param("alice:100000:65536\nalice:300000:9\n", id="first_of_two"),
        pytest.param(
            "\n# x\nalice\nalice:\nalice:x:y\nalice:1\nalice::5\nalice:-1:5\nalice:1:2:3\n"
            "alice:100000:65536\n",
            id="after_malformed_lines",
        ),
    ],
)
def test_entry(tmp_path: Path, lines: str) -> None:
    assert mappings(tmp_path, lines, ENTRY)[0] == (
        IdMapping(0, 1234, 1),
        IdMapping(1000, 100000, 1),
        IdMapping(NOBODY, 100001, 1),
    )


@pytest.mark.usefixtures("alice")
def test_groups_are_keyed_by_the_user_too(tmp_path: Path) -> None:
    subgid = "2345:1:9\nstaff:1:9\n1234:200000:65536\n"

    assert mappings(tmp_path, ENTRY, subgid)[1] == (
        IdMapping(0, 2345, 1),
        IdMapping(100, 200000, 1),
        IdMapping(NOBODY, 200001, 1),
    )


@pytest.mark.usefixtures("alice")
def test_count_1_has_no_nobody(tmp_path: Path) -> None:
    uids, gids = mappings(tmp_path, "alice:100000:1\n", "alice:200000:2\n")

    assert uids == (IdMapping(0, 1234, 1), IdMapping(1000, 100000, 1))
    assert gids[2] == IdMapping(NOBODY, 200001, 1)


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("subuid", "subgid", "file"),
    [
        pytest.param(None, ENTRY, "subuid", id="no_subuid_file"),
        pytest.param(ENTRY, None, "subgid", id="no_subgid_file"),
        pytest.param("", ENTRY, "subuid", id="empty_file"),
        pytest.param("bob:1:9\n", ENTRY, "subuid", id="others_only"),
        pytest.param("alice:1:0\n", ENTRY, "subuid", id="zero_count"),
        pytest.param("alice:1:-5\n", ENTRY, "subuid", id="negative_count"),
        pytest.param("2345:1:9\n", ENTRY, "subuid", id="gid_for_uid"),
        pytest.param(ENTRY, "2345:1:9\n", "subgid", id="gid"),
    ],
)
def test_no_entry(tmp_path: Path, subuid: str | None, subgid: str | None, file: str) -> None:
    with pytest.raises(NoSubordinateIds) as refused:
        mappings(tmp_path, subuid, subgid)

    assert str(refused.value) == (
        f"no subordinate ids for alice in {tmp_path / file}: add a line such as "
        "alice:100000:65536 (see usermod(8), --add-subuids and --add-subgids)"
    )


@pytest.mark.usefixtures("alice")
def test_user_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)

    uids, _ = mappings(tmp_path, "1234:100000:9\n", "1234:200000:9\n")

    assert uids[1] == IdMapping(1000, 100000, 1)


@pytest.mark.usefixtures("alice")
def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_bytes(b"\xff:1:9\nalice:100000:9\n")
    (tmp_path / "subgid").write_text(ENTRY)

    uids, _ = host_id_mappings(tmp_path / "subuid", tmp_path / "subgid")

    assert uids[1] == IdMapping(1000, 100000, 1)


@pytest.mark.usefixtures("alice")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "subuid").mkdir()

    with pytest.raises(IsADirectoryError):
        mappings(tmp_path, None, ENTRY)


@pytest.mark.usefixtures("root")
def test_root_without_an_entry_keeps_its_ids(tmp_path: Path) -> None:
    assert mappings(tmp_path, None, "") == (
        tuple(IdMapping(i, i, 1) for i in (0, 1000, NOBODY)),
        tuple(IdMapping(i, i, 1) for i in (0, 100, NOBODY)),
    )


@pytest.mark.usefixtures("root")
def test_root_with_an_entry(tmp_path: Path) -> None:
    uids, gids = mappings(tmp_path, "root:100000:9\n", None)

    assert uids[:2] == (IdMapping(0, 0, 1), IdMapping(1000, 100000, 1))
    assert gids[1] == IdMapping(100, 100, 1)
