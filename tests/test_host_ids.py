"""Id mappings from /etc/subuid and /etc/subgid, as subuid(5) and subgid(5) have them."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from specgen_commands import host_ids
from specgen_commands.host_ids import (
    NoSubordinateIds,
    Persons,
    all_own_ids,
    host_id_mappings,
)
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
    names = {0: "root", 14: "uucp", 1000: "bob", 65_534: "nobody"}
    accounts = {id_: SimpleNamespace(pw_name=name) for id_, name in names.items()}
    monkeypatch.setattr(pwd, "getpwuid", accounts.__getitem__)
    monkeypatch.setattr(grp, "getgrgid", accounts.__getitem__)


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


FREE = 2_130_706_432
"""The first of the ranges that nobody gives to anyone."""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        pytest.param("root:100000:65536\n", [100_001, 100_000, 100_002], id="by_name"),
        pytest.param("0:100000:65536\n", [100_001, 100_000, 100_002], id="by_uid"),
        pytest.param("root:100000:2\n", [100_001, 100_000], id="two_have_no_nobody"),
        pytest.param("root:5:9\nroot:100000:9\n", [6, 5, 7], id="first_of_two"),
        pytest.param("root:7:1\nroot:100000:9\n", [100_000, 7, 100_001], id="of_two_entries"),
        pytest.param("root:0:65536\n", [2, 1, 3], id="not_root_itself"),
        pytest.param("root:13:65536\n", [14, 13, 15], id="a_system_account"),
        pytest.param("root:65534:2\n", [65_535, 65_534], id="nobody_is_no_person"),
        pytest.param("root:1000:1\n", [FREE + 1, FREE, FREE + 2], id="no_person"),
        pytest.param("root:1000:1\nroot:500000:65536\n", [500_001, 500_000, 500_002], id="lxd"),
        pytest.param("root:9:1\n", [FREE + 1, FREE, FREE + 2], id="too_few"),
        pytest.param(
            "alice:100000:65536\nroot:100000:65536\n", [FREE + 1, FREE, FREE + 2], id="a_persons"
        ),
        pytest.param(
            "alice:100000:9\nroot:100000:65536\n", [100_010, 100_009, 100_011], id="partly_so"
        ),
        pytest.param(None, [FREE + 1, FREE, FREE + 2], id="no_file"),
        pytest.param("roots:1:9\nalice:100000:65536\n", [FREE + 1, FREE, FREE + 2], id="others"),
        pytest.param(
            f"alice:{FREE + 9}:1\n", [FREE + 65_537, FREE + 65_536, FREE + 65_538], id="next_range"
        ),
    ],
)
def test_root_is_nobody_of_this_host(tmp_path: Path, lines: str | None, ids: list[int]) -> None:
    uids, gids = mappings(tmp_path, lines, lines)

    assert [m.host_id for m in uids] == [m.host_id for m in gids] == ids
    assert [m.container_id for m in uids] == [0, 1000, NOBODY][: len(ids)]
    assert [m.container_id for m in gids] == [0, 100, NOBODY][: len(ids)]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("there", "lines", "said"),
    [
        pytest.param(
            "0 1000 1\n1 100000 999\n",
            "",
            "no subordinate ids for root in {file}, and none that are free; this user namespace has"
            " too few ids, see {map}",
            id="too_few",
        ),
        pytest.param(
            "0 1000 1\n1 100000 65536\n",
            "",
            "no subordinate ids for root in {file}, and none that are free: add a line such as "
            "root:60001:1183 (see usermod(8), --add-subuids and --add-subgids)",
            id="in_a_container",
        ),
        pytest.param(
            "0 0 400000\n",
            "alice:100000:65536\n",
            "no subordinate ids for root in {file}, and none that are free: add a line such as "
            "root:165536:65536 (see usermod(8), --add-subuids and --add-subgids)",
            id="beside_those_of_others",
        ),
        pytest.param(
            "0 0 4294967295\n",
            f"alice:{FREE}:16646144\n",
            "no subordinate ids for root in {file}, and none that are free: add a line such as "
            "root:100000:65536 (see usermod(8), --add-subuids and --add-subgids)",
            id="all_taken",
        ),
    ],
)
def test_no_ids_for_root(
    there: str, lines: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "map").write_text(there)
    for name in ("_UID_MAP", "_GID_MAP"):
        monkeypatch.setattr(host_ids, name, tmp_path / "map")

    with pytest.raises(NoSubordinateIds) as refused:
        mappings(tmp_path, lines, lines)

    assert str(refused.value) == said.format(file=tmp_path / "subuid", map=tmp_path / "map")


@pytest.mark.usefixtures("alice")
def test_ids_that_this_user_namespace_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "map").write_text("0 1000 1\n1 100000 65536\n")
    monkeypatch.setattr(host_ids, "_UID_MAP", tmp_path / "map")

    with pytest.raises(NoSubordinateIds, match="are not among the ids of this user namespace"):
        mappings(tmp_path, "alice:100000:65536\n", ENTRY)


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("entry", "build_user", "count"),
    [
        pytest.param("alice:1234:9\n", 1235, 8, id="first"),
        pytest.param("alice:1200:65536\n", 1200, 34, id="in_the_middle"),
        pytest.param("alice:1235:1\n", 1235, 1, id="beside"),
    ],
)
def test_the_runners_own_id_is_not_mapped_twice(
    entry: str, build_user: int, count: int, tmp_path: Path
) -> None:
    uids, _ = mappings(tmp_path, entry, ENTRY)
    assert [m.host_id for m in uids[:2]] == [1234, build_user]
    own, _ = all_own_ids(tmp_path / "subuid", tmp_path / "subgid")
    assert own == (IdMapping(0, 1234, 1), IdMapping(1, build_user, count))


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("login_defs", "build_user"),
    [
        pytest.param("# comment\nUID_MIN\t\t14\nGID_MIN 14\n", 15, id="from_14_on"),
        pytest.param("UID_MIN 2000\nGID_MIN 2000\n", 14, id="never_above_1000"),
        pytest.param("UID_MIN\nUID_MIN x\n\n", 14, id="broken"),
        pytest.param(None, 14, id="missing"),
    ],
)
def test_where_persons_start(
    login_defs: str | None, build_user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids 14 and 1000 have accounts."""
    if login_defs is not None:
        (tmp_path / "login.defs").write_text(login_defs)
    monkeypatch.setattr(host_ids, "_LOGIN_DEFS", tmp_path / "login.defs")
    lines = "root:14:1\nroot:1000:1\nroot:15:1\nroot:16:1\n"
    uids, gids = mappings(tmp_path, lines, lines)
    assert uids[1].host_id == gids[1].host_id == build_user
    assert 1000 not in [mapping.host_id for mapping in (*uids, *gids)]


NO_PERSONS = Persons(lambda _: False, lambda _: False)


@pytest.mark.parametrize(
    ("lines", "uid", "user", "expected"),
    [
        pytest.param(["nobody:10000:65", "root:1000:2", "0:2:2"], 0, "root", 1000, id="by_name"),
        pytest.param(["nobody:10000:65", "0:2:2"], 0, "root", 2, id="by_number"),
        pytest.param(["roots:1000:2", "1000:2:2"], 0, "root", None, id="missing"),
        pytest.param(["root:hello:2", "1000:2:2"], 0, "root", None, id="no_number"),
        pytest.param(["root:hello:2", "1000:2:2"], 1000, "user", 2, id="anothers_is_broken"),
    ],
)
def test_a_lookup_as_snix_has_it(
    lines: list[str],
    uid: int,
    user: str,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cases of snix, build/src/oci/subuid.rs. Where it fails, root takes ids that are free."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "getegid", lambda: uid)
    monkeypatch.setattr(pwd, "getpwuid", {uid: SimpleNamespace(pw_name=user)}.__getitem__)
    (tmp_path / "subuid").write_text("\n".join(lines))
    files = (tmp_path / "subuid", tmp_path / "subuid")
    if expected is None:
        with pytest.raises(NoSubordinateIds):
            all_own_ids(*files)
    else:
        assert all_own_ids(*files)[0][1].host_id == expected
    uids, gids = host_id_mappings(*files, persons=NO_PERSONS)
    assert uids[1].host_id == gids[1].host_id == (FREE if expected is None else expected)
