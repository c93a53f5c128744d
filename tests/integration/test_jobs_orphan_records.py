"""Orphan records on a real server and real directories: what counts as missing, and all that does not."""

from __future__ import annotations

import datetime as dt
import errno
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Code, Decimal128, Int64, MinKey, ObjectId, Timestamp

from agent.volume import Volume
from tests import servers
from tests.conftest import Database
from tests.harness import (
    DAY,
    HOUR,
    MINUTE,
    Db,
    Document,
    encoded,
    insert_raw,
    meddled,
    opened,
    picture,
    server_now,
    unprivileged_threads,
)

SLUG = "generated/apps"


def apps(root: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    return {"apps": {"kind": "orphan_records", "root": str(root), "quarantine": "0s", **settings}}


def record(slug: Any, number: Any, made: Any, **more: Any) -> Document:
    return {"model_slug": slug, "app_number": number, "created_at": made, **more}


def directory(root: Path, slug: str, number: object) -> Path:
    return root / SLUG / slug / f"app{number}"


def healthy(db: Db, root: Path, count: int = 8, slug: str = "healthy") -> list[Document]:
    """Records with their directories, so that the root is proven."""
    old = server_now(db) - DAY
    records = [record(slug, number, old, _id=f"{slug}{number}") for number in range(count)]
    db["generated_applications"].insert_many(records)
    for number in range(count):
        directory(root, slug, number).mkdir(parents=True)
    return records


def insert(db: Db, records: dict[str, Document]) -> None:
    db["generated_applications"].insert_many([{"_id": name, **one} for name, one in records.items()])


def left(db: Db) -> set[Any]:
    return {one["_id"] for one in db["generated_applications"].find({}, {"_id": 1})}


# --- what is found


async def test_every_record_has_one_verdict(database: Database, db: Db, root: Path, tmp_path: Path) -> None:
    """Missing directories are orphans; what cannot be judged is reported by what it is; the rest is fine."""
    old = server_now(db) - DAY
    healthy(db, root)
    (root / SLUG / "files").mkdir(parents=True)
    (root / SLUG / "files/app1").write_text("")
    (root / SLUG / "afile").write_text("")
    (tmp_path / "away/app1").mkdir(parents=True)
    (root / SLUG / "out").symlink_to(tmp_path / "away")
    (root / SLUG / "dangling").mkdir()
    (root / SLUG / "dangling/app1").symlink_to(root / "nowhere")
    (root / SLUG / "in").symlink_to(root / SLUG / "healthy")
    directory(root, "Ünïcode 日本", 1).mkdir(parents=True)
    directory(root, "org/model", 1).mkdir(parents=True)
    directory(root, "double", 3).mkdir(parents=True)
    orphans = {
        "missing": record("healthy", 99, old),
        "missing_parent": record("gone", 1, old),
        "unicode": record("Ünïcode 日本", 2, old),
        "unicode_parent": record("日本", 1, old),
        "slash": record("org/model", 2, old),
        "double": record("double", 4.0, old),
        "long": record("double", Int64(5), old),
        "negative": record("double", -3, old),
        "link_inside": record("in", 99, old),
        "case": record("HEALTHY", 1, old),
        "spaces": record(" healthy ", 1, old),
        "name_of_255": record("x" * 255, 1, old),
        "shell": record("$(rm -rf /); `x` *", 1, old),
    }
    fine = {
        "double_there": record("double", 3.0, old),
        "unicode_there": record("Ünïcode 日本", Int64(1), old),
        "slash_there": record("org/model", 1, old),
        "link_there": record("in", 1, old),
        "young": record("gone", 2, server_now(db)),
        "future": record("gone", 3, server_now(db) + DAY),
    }
    outside = {
        "dotdot": record("..", 1, old),
        "climbs": record("../../../../etc", 1, old),
        "climbs_back": record("x/../healthy", 1, old),
        "through_link": record("out", 1, old),
        "through_link_missing": record("out", 99, old),
        "dangling": record("dangling", 1, old),
    }
    malformed = {
        "no_slug": {"app_number": 1, "created_at": old},
        "null_slug": record(None, 1, old),
        "empty_slug": record("", 1, old),
        "dot": record(".", 1, old),
        "absolute": record("/etc", 1, old),
        "trailing": record("gone/", 1, old),
        "nul": record("a\0b", 1, old),
        "array": record(["gone"], 1, old),
        "document": record({"a": 1}, 1, old),
        "bool": record("gone", True, old),
        "fraction": record("gone", 1.5, old),
        "nan": record("gone", float("nan"), old),
        "infinite": record("gone", float("inf"), old),
        "decimal": record("gone", Decimal128("1"), old),
        "id": record(ObjectId(), 1, old),
        "date": record(old, 1, old),
        "bytes": record(b"gone", 1, old),
        "code": record(Code("gone"), 1, old),
        "min": record(MinKey(), 1, old),
        "file": record("files", 1, old),
        "file_as_parent": record("afile", 1, old),
        "below_a_file": record("files/app1", 1, old),
        "too_long": record("x" * 256, 1, old),
        "far_too_long": record("x" * 5_000_000, 1, old),
        "far_too_deep": record("x/" * 3000 + "x", 1, old),
        "no_date": {"model_slug": "gone", "app_number": 4},
        "null_date": record("gone", 5, None),
        "text_date": record("gone", 6, "2020-01-01"),
        "array_date": record("gone", 7, [old]),
        "timestamp": record("gone", 8, Timestamp(1, 1)),
    }
    insert(db, {**orphans, **fine, **outside, **malformed})
    before = picture(db)
    async with opened(database, db, apps(root, limit={"fraction": 1})) as bench:
        found = await bench.selected("apps")
        assert found == {
            **dict.fromkeys(orphans, "deleted"),
            **dict.fromkeys(outside, "outside"),
            **dict.fromkeys(malformed, "malformed"),
        }
        assert picture(db) == before
        ran = await bench.run("apps")
    assert (ran["outcome"], ran["failed"], ran["changed"]) == ("succeeded", 0, {"deleted": len(orphans)})
    assert ran["found"] == {"orphan": len(orphans), "outside": len(outside), "malformed": len(malformed)}
    assert not left(db) & set(orphans)
    assert left(db) >= {*fine, *outside, *malformed}
    assert ran["population"] == len(orphans) + len(fine) + len(outside) + len(malformed) + 8
    assert (tmp_path / "away/app1").is_dir()


async def test_text_that_is_not_utf8_is_malformed(database: Database, db: Db, root: Path) -> None:
    """Two different names must not become one; elsewhere in a document such text is copied as it is."""
    healthy(db, root)
    old = server_now(db) - DAY
    bad = encoded({"_id": "name", **record("goneXX", 1, old)}).replace(b"goneXX", b"gone\xff\xfe")
    fine = encoded({"_id": "elsewhere", **record("gone", 2, old), "note": "YYYY"}).replace(b"YYYY", b"\xff\xfeYY")
    insert_raw(db, "generated_applications", bad, fine)
    async with opened(database, db, apps(root)) as bench:
        assert await bench.selected("apps") == {"name": "malformed", "elsewhere": "deleted"}
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"deleted": 1}, 0)
        restored = await bench.restore(ran["_id"])
        assert (restored["outcome"], restored["changed"]) == ("succeeded", {"restored": 1})
    assert fine in picture(db)["generated_applications"]


async def test_ids_of_every_type_are_deleted_and_restored(database: Database, db: Db, root: Path) -> None:
    """Also two that Python takes for one."""
    healthy(db, root)
    old = server_now(db) - DAY
    ids: list[Any] = [
        ObjectId(),
        "text",
        "",
        7,
        7.5,
        Int64(2**40),
        Decimal128("1.5"),
        True,
        False,
        1,
        0,
        None,
        b"bytes",
        Binary(b"bytes", 128),
        Code("code"),
        "code",
        old,
        Timestamp(5, 6),
        {"b": 1, "a": {"c": [1, 2.0]}},
        {},
        MinKey(),
    ]
    db["generated_applications"].insert_many(
        [{"_id": id, **record("gone", number, old)} for number, id in enumerate(ids)]
    )
    before = picture(db)
    async with opened(database, db, apps(root, limit={"fraction": 1})) as bench:
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["changed"], ran["failed"]) == ("succeeded", {"deleted": len(ids)}, 0)
        assert db["generated_applications"].count_documents({"model_slug": "gone"}) == 0
        restored = await bench.restore(ran["_id"])
        assert (restored["outcome"], restored["changed"]) == ("succeeded", {"restored": len(ids)})
        assert picture(db) == before
        again = await bench.run("apps")
        assert (again["changed"], again["held"]) == ({}, {"hold": len(ids)})


async def test_without_a_field_of_creation_the_object_id_tells_the_age(database: Database, db: Db, root: Path) -> None:
    """And any other id has no age, so no grace."""
    healthy(db, root)
    now = server_now(db)
    young, old = ObjectId.from_datetime(now - 9 * MINUTE), ObjectId.from_datetime(now - 11 * MINUTE)
    for number, id in enumerate([young, old, "text", 7]):
        db["generated_applications"].insert_one({"_id": id, "model_slug": "gone", "app_number": number})
    async with opened(database, db, apps(root, fields={"created_at": None})) as bench:
        assert await bench.selected("apps") == dict.fromkeys([old, "text", 7], "deleted")
        ran = await bench.run("apps")
        assert ran["changed"] == {"deleted": 3}
    assert young in left(db)


@pytest.mark.parametrize("grace", [0, 10, 1440])
async def test_a_record_is_an_orphan_past_its_grace_and_not_at_it(
    database: Database, db: Db, root: Path, grace: int
) -> None:
    """A minute and a millisecond either side."""
    healthy(db, root)
    now = server_now(db) + HOUR
    span, ms = grace * MINUTE, dt.timedelta(milliseconds=1)
    ages = {"young": span - MINUTE, "almost": span - ms, "at": span, "just": span + ms, "old": span + MINUTE}
    insert(db, {name: record("gone", number, now - age) for number, (name, age) in enumerate(ages.items())})
    async with opened(database, db, apps(root, grace=f"{grace}m"), prepared=False) as bench:
        assert await bench.selected("apps", now) == {"just": "deleted", "old": "deleted"}


async def test_paths_may_be_made_of_dotted_fields(database: Database, db: Db, root: Path) -> None:
    """And the write compares them where they are."""
    old = server_now(db) - DAY
    for name in ("a-1", "b-2"):
        (root / "vol" / name).mkdir(parents=True)
    db["things"].insert_many(
        [{"_id": f"{name}{number}", "meta": {"app": {"name": name, "n": number}}, "times": {"made": old}} for name in "abc" for number in (1, 2)]
        + [{"_id": "list", "meta": [{"app": {"name": "z", "n": 1}}], "times": {"made": old}}]
    )  # fmt: skip
    settings = {
        "collection": "things",
        "path": "vol/{meta.app.name}-{meta.app.n}",
        "fields": {"created_at": "times.made"},
    }
    async with opened(database, db, apps(root, **settings)) as bench:
        ran = await bench.run("apps")
    assert ran["found"] == {"orphan": 4, "malformed": 1}
    assert {one["_id"] for one in db["things"].find()} == {"a1", "b2", "list"}


async def test_where_narrows_what_is_found_proven_and_counted(database: Database, db: Db, root: Path) -> None:
    """Another tenant's records neither prove the root nor are deleted."""
    old = server_now(db) - DAY
    insert(
        db, {f"{tenant}{number}": record(tenant, number, old, tenant=tenant) for tenant in "ab" for number in range(4)}
    )
    directory(root, "a", 0).mkdir(parents=True)
    async with opened(database, db, apps(root, where={"tenant": "b"})) as bench:
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["population"]) == ("refused", 4)
        bench.configure("apps", where={"tenant": "a"})
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["population"], ran["changed"]) == ("succeeded", 4, {"deleted": 3})
    assert left(db) == {"a0", "b0", "b1", "b2", "b3"}


# --- the root proof


def unmounted(root: Path) -> None:
    """The root is gone."""
    root.rename(root.with_name(root.name + "-away"))


def emptied(root: Path) -> None:
    """The mount point is there, the volume is not."""
    unmounted(root)
    root.mkdir()


def a_file(root: Path) -> None:
    """Something else stands in its place."""
    unmounted(root)
    root.write_text("")


def foreign(root: Path) -> None:
    """Another volume is mounted, with directories of its own."""
    emptied(root)
    (root / SLUG / "others/app1").mkdir(parents=True)


def broken(root: Path) -> None:
    """A link that leads nowhere."""
    unmounted(root)
    root.symlink_to(root.with_name("nowhere-at-all"))


def mended(root: Path) -> None:
    away = root.with_name(root.name + "-away")
    if not away.exists():
        return
    if root.is_dir() and not root.is_symlink():
        os.system(f"rm -rf '{root}'")  # noqa: S605 - a temporary directory of this test
    else:
        root.unlink(missing_ok=True)
    away.rename(root)


BREAKINGS = [unmounted, emptied, a_file, foreign, broken]


@servers.both_topologies
@pytest.mark.parametrize("breaking", BREAKINGS, ids=lambda breaking: breaking.__name__)
async def test_a_root_that_is_not_proven_refuses_the_run(database: Database, db: Db, root: Path, breaking: Any) -> None:
    """Nothing is deleted, nothing is taken for found, no sighting is made; afterwards all is as before."""
    healthy(db, root)
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    before = picture(db)
    try:
        breaking(root)
        async with opened(database, db, apps(root, quarantine="1m")) as bench:
            for dry_run in (True, False):
                ran = await bench.run("apps", dry_run=dry_run)
                assert (ran["outcome"], ran["found"], ran["changed"], ran["held"]) == ("refused", {}, {}, {})
                assert ran["reason"].startswith("root: ")
                assert ran["sample"] == []
            accepted = await bench.run("apps", accept=frozenset({"cap", "targets"}))
            assert accepted["outcome"] == "refused"
            assert picture(db) == before
            assert bench.own("marks").count_documents({}) == 0
            assert bench.own("controls").count_documents({"_id": {"$regex": "^baseline"}}) == 0
            mended(root)
            ran = await bench.run("apps")
            assert (ran["outcome"], ran["held"]) == ("succeeded", {"quarantine": 1})
    finally:
        mended(root)


@pytest.mark.parametrize("breaking", [unmounted, a_file, broken], ids=lambda breaking: breaking.__name__)
async def test_nobody_can_consent_to_a_root_that_is_none(database: Database, db: Db, root: Path, breaking: Any) -> None:
    """Consent is to what was seen, and nothing was."""
    healthy(db, root)
    before = picture(db)
    try:
        breaking(root)
        async with opened(database, db, apps(root)) as bench:
            ran = await bench.run("apps", accept=frozenset({"root", "cap"}))
            assert (ran["outcome"], ran["accept"]) == ("refused", ["cap", "root"])
            assert "--accept" not in ran["reason"]
    finally:
        mended(root)
    assert picture(db) == before


async def test_an_operator_can_consent_to_a_volume_that_holds_none_of_the_directories(
    database: Database, db: Db, root: Path
) -> None:
    """By name and on record; the cap is asked apart."""
    insert(db, {str(number): record("gone", number, server_now(db) - DAY) for number in range(4)})
    async with opened(database, db, apps(root, limit={"floor": 3})) as bench:
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["reason"].partition(":")[0]) == ("refused", "root")
        assert "maintenance-agent run apps --accept root" in ran["reason"]
        ran = await bench.run("apps", accept=frozenset({"root"}))
        assert (ran["outcome"], ran["reason"].partition(":")[0]) == ("refused", "cap")
        ran = await bench.run("apps", accept=frozenset({"root", "cap"}))
        assert (ran["outcome"], ran["changed"], ran["accept"]) == ("succeeded", {"deleted": 4}, ["cap", "root"])


async def test_a_root_that_may_not_be_read_refuses_the_run(database: Database, db: Db, root: Path) -> None:
    """And no consent helps."""
    if sys.platform != "linux":
        pytest.skip("only Linux lets a thread give up its rights")
    healthy(db, root)
    before = picture(db)
    root.chmod(0)
    try:
        with unprivileged_threads() as threads:
            async with opened(database, db, apps(root)) as bench:
                bench.read_volumes_with(threads)
                for accept in (frozenset[str](), frozenset({"root", "cap"})):
                    ran = await bench.run("apps", accept=accept)
                    assert (ran["outcome"], ran["changed"]) == ("refused", {})
                    assert "may not be read" in ran["reason"]
    finally:
        root.chmod(0o755)
    assert picture(db) == before


async def test_records_below_a_directory_that_denies_access_are_left_alone(
    database: Database, db: Db, root: Path
) -> None:
    """They are counted as unreadable; the others are judged as ever."""
    if sys.platform != "linux":
        pytest.skip("only Linux lets a thread give up its rights")
    healthy(db, root)
    old = server_now(db) - DAY
    insert(db, {f"closed{number}": record("closed", number, old) for number in range(5)})
    insert(db, {"missing": record("healthy", 99, old)})
    directory(root, "closed", 0).mkdir(parents=True)
    (root / SLUG / "closed").chmod(0)
    try:
        with unprivileged_threads() as threads:
            async with opened(database, db, apps(root)) as bench:
                bench.read_volumes_with(threads)
                ran = await bench.run("apps")
    finally:
        (root / SLUG / "closed").chmod(0o755)
    assert ran["found"] == {"orphan": 1, "unreadable": 5}
    assert ran["changed"] == {"deleted": 1}


async def test_a_drop_below_half_of_the_last_good_run_is_refused(database: Database, db: Db, root: Path) -> None:
    """One directory more is enough; consent moves the line; a dry run and a refusal do not."""
    healthy(db, root, 20)
    async with opened(database, db, apps(root, limit={"fraction": 1})) as bench:
        assert (await bench.run("apps"))["outcome"] == "succeeded"
        for number in range(11):
            directory(root, "healthy", number).rmdir()
        refused = await bench.run("apps")
        assert (refused["outcome"], refused["found"], refused["changed"]) == ("refused", {}, {})
        assert "saw 9 directories, expected at least 10" in refused["reason"]
        assert (await bench.dry("apps"))["outcome"] == "refused"
        directory(root, "healthy", 0).mkdir()
        assert (await bench.dry("apps"))["found"] == {"orphan": 10}
        directory(root, "healthy", 0).rmdir()
        accepted = await bench.run("apps", accept=frozenset({"root"}))
        assert (accepted["outcome"], accepted["changed"]) == ("succeeded", {"deleted": 11})
        for number in range(11, 15):
            directory(root, "healthy", number).rmdir()
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"deleted": 4})


# --- the marker


async def test_a_configured_marker_must_be_there(database: Database, db: Db, root: Path) -> None:
    """Without it nothing is deleted, however many directories are found; an operator may consent."""
    healthy(db, root)
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    async with opened(database, db, apps(root, marker=".volume")) as bench:
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["reason"].partition(";")[0]) == (
            "refused",
            f"root: the marker .volume is missing or cannot be read under {root}",
        )
        ran = await bench.run("apps", accept=frozenset({"root"}))
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"deleted": 1})


async def test_another_content_of_the_marker_is_another_volume(database: Database, db: Db, root: Path) -> None:
    """It is pinned at the first good run and stays so until somebody consents."""
    healthy(db, root)
    (root / ".volume").write_text("one\n")
    async with opened(database, db, apps(root, marker=".volume")) as bench:
        assert (await bench.dry("apps"))["outcome"] == "succeeded"
        (root / ".volume").write_text("two")
        assert (await bench.run("apps"))["outcome"] == "succeeded"  # a dry run pins nothing
        insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
        (root / ".volume").write_text("three")
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["changed"]) == ("refused", {})
        assert "another volume: 'three' instead of 'two'" in ran["reason"]
        assert (await bench.dry("apps"))["outcome"] == "refused"
        ran = await bench.run("apps", accept=frozenset({"root"}))
        assert (ran["outcome"], ran["changed"]) == ("succeeded", {"deleted": 1})
        assert (await bench.run("apps"))["outcome"] == "succeeded"


# --- quarantine


@servers.both_topologies
async def test_an_orphan_is_deleted_by_a_later_run_once_its_quarantine_is_over(
    database: Database, db: Db, root: Path
) -> None:
    """The first run only sights it; one that comes too early holds it; dry runs sight nothing."""
    healthy(db, root)
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    async with opened(database, db, apps(root, quarantine="10m")) as bench:
        for _ in range(2):
            dry = await bench.dry("apps")
            assert (dry["found"], dry["held"]) == ({"orphan": 1}, {"quarantine": 1})
            assert bench.own("marks").count_documents({}) == 0
        first = await bench.run("apps")
        assert (first["outcome"], first["held"], first["changed"]) == ("succeeded", {"quarantine": 1}, {})
        bench.age_sightings(9 * MINUTE)
        early = await bench.run("apps")
        assert (early["held"], early["changed"]) == ({"quarantine": 1}, {})
        bench.age_sightings(MINUTE)
        assert (await bench.dry("apps"))["held"] == {}
        ran = await bench.run("apps")
        assert (ran["held"], ran["changed"]) == ({}, {"deleted": 1})
        assert (await bench.run("apps"))["found"] == {}
        assert bench.own("marks").count_documents({}) == 0


async def test_a_directory_that_came_back_ends_the_quarantine(database: Database, db: Db, root: Path) -> None:
    """When it goes again, the time begins anew."""
    healthy(db, root)
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    async with opened(database, db, apps(root, quarantine="10m")) as bench:
        await bench.run("apps")
        bench.age_sightings(HOUR)
        directory(root, "healthy", 99).mkdir()
        assert (await bench.run("apps"))["found"] == {}
        directory(root, "healthy", 99).rmdir()
        ran = await bench.run("apps")
        assert (ran["held"], ran["changed"]) == ({"quarantine": 1}, {})


async def test_sightings_on_two_volumes_are_not_two_of_one_thing(database: Database, db: Db, root: Path) -> None:
    """On the other volume the quarantine begins anew, and on the first one again."""
    healthy(db, root)
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    (root / ".volume").write_text("one")
    async with opened(database, db, apps(root, quarantine="10m", marker=".volume")) as bench:
        assert (await bench.run("apps"))["held"] == {"quarantine": 1}
        for volume in ("two", "one"):
            bench.age_sightings(HOUR)
            (root / ".volume").write_text(volume)
            ran = await bench.run("apps", accept=frozenset({"root"}))
            assert (ran["held"], ran["changed"]) == ({"quarantine": 1}, {})
        bench.age_sightings(HOUR)
        assert (await bench.run("apps"))["changed"] == {"deleted": 1}


async def test_a_refusal_by_the_cap_sights_and_one_by_a_proof_does_not(database: Database, db: Db, root: Path) -> None:
    """What was seen on a proven volume stays seen."""
    healthy(db, root)
    insert(db, {str(number): record("gone", number, server_now(db) - DAY) for number in range(4)})
    async with opened(database, db, apps(root, quarantine="10m", limit={"items": 3})) as bench:
        unmounted(root)
        try:
            assert (await bench.run("apps"))["outcome"] == "refused"
        finally:
            mended(root)
        assert bench.own("marks").count_documents({}) == 0
        ran = await bench.run("apps")
        assert (ran["outcome"], ran["found"], ran["held"]) == ("refused", {"orphan": 4}, {"quarantine": 4})
        assert bench.own("marks").count_documents({"_id.type": "sighting"}) == 4
        bench.age_sightings(HOUR)
        ran = await bench.run("apps", accept=frozenset({"cap"}))
        assert (ran["held"], ran["changed"]) == ({}, {"deleted": 4})


# --- what happens meanwhile


@servers.both_topologies
async def test_a_directory_that_comes_back_before_the_write_saves_its_record(
    database: Database, db: Db, root: Path
) -> None:
    """Every item is looked at again right before its batch."""
    healthy(db, root)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY) for number in range(6)})

    def comes_back() -> None:
        directory(root, "gone", 3).mkdir(parents=True)
        (root / SLUG / "gone/app4").write_text("a file is no missing directory either")

    async with opened(database, db, apps(root)) as bench:
        bench.use(meddled(bench.jobs["apps"], after_select=comes_back))
        ran = await bench.run("apps")
    assert (ran["found"], ran["changed"], ran["failed"]) == ({"orphan": 6}, {"deleted": 4}, 0)
    assert {"m3", "m4"} <= left(db)


@servers.both_topologies
async def test_a_directory_that_comes_back_during_the_write_has_its_record_restored_at_once(
    database: Database, db: Db, root: Path
) -> None:
    """Counted as deleted and as restored, byte for byte as it was, and not held."""
    healthy(db, root)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY, extra=[1, {"z": 2}]) for number in range(6)})
    before = picture(db)

    def comes_back(look: int) -> None:
        if look == 0:
            directory(root, "gone", 3).mkdir(parents=True)

    async with opened(database, db, apps(root)) as bench:
        bench.use(meddled(bench.jobs["apps"], after_still=comes_back))
        ran = await bench.run("apps")
        assert ran["changed"] == {"deleted": 6, "restored": 1}
        kept = [one for one in before["generated_applications"] if b"m3\x00" in one or b"healthy" in one]
        assert picture(db)["generated_applications"] == kept
        assert bench.own("marks").count_documents({"_id.type": "hold"}) == 0
        restored = await bench.restore(ran["_id"])
        assert restored["changed"] == {"restored": 5}
    assert picture(db) == before


async def test_a_record_that_is_named_otherwise_between_the_look_and_the_write_stays(
    database: Database, db: Db, root: Path
) -> None:
    """Its own evidence stands in the filter of the write; so does its age."""
    healthy(db, root)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY) for number in range(6)})

    def changes() -> None:
        db["generated_applications"].update_one({"_id": "m1"}, {"$set": {"app_number": 99}})
        db["generated_applications"].update_one({"_id": "m2"}, {"$set": {"model_slug": "healthy"}})
        db["generated_applications"].update_one({"_id": "m3"}, {"$set": {"created_at": server_now(db)}})
        db["generated_applications"].update_one({"_id": "m4"}, {"$set": {"something": "else"}})
        db["generated_applications"].delete_one({"_id": "m5"})

    async with opened(database, db, apps(root)) as bench:
        bench.use(meddled(bench.jobs["apps"], after_select=changes))
        ran = await bench.run("apps")
    assert ran["changed"] == {"deleted": 2}
    assert left(db) & {f"m{number}" for number in range(6)} == {"m1", "m2", "m3"}


@pytest.mark.parametrize("breaking", BREAKINGS, ids=lambda breaking: breaking.__name__)
@pytest.mark.parametrize("moment", ["while_selecting", "after_select", "before_still"])
async def test_a_volume_that_goes_during_the_run_costs_no_record(
    database: Database, db: Db, root: Path, breaking: Any, moment: str
) -> None:
    """Whenever it goes before the write, the run ends without a change."""
    healthy(db, root)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY) for number in range(6)})
    before = picture(db)
    gone = threading.Event()

    def goes(*_: object) -> None:
        if not gone.is_set():
            gone.set()
            breaking(root)

    try:
        async with opened(database, db, apps(root)) as bench:
            bench.use(meddled(bench.jobs["apps"], **{moment: goes}))
            ran = await bench.run("apps")
    finally:
        mended(root)
    assert ran["outcome"] in {"refused", "failed"}
    assert ran["changed"] == {}
    assert picture(db) == before


async def test_a_volume_that_is_gone_at_the_look_back_ends_the_run_and_loses_nothing(
    database: Database, db: Db, root: Path
) -> None:
    """Could not look is never absent: the whole batch is put back."""
    healthy(db, root)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY) for number in range(6)})
    before = picture(db)

    def goes(look: int) -> None:
        if look == 1:
            emptied(root)

    try:
        async with opened(database, db, apps(root, batch=3)) as bench:
            bench.use(meddled(bench.jobs["apps"], before_still=goes))
            ran = await bench.run("apps")
            assert (ran["outcome"], ran["complete"]) == ("failed", False)
            assert ran["changed"] == {"deleted": 3, "restored": 3}
    finally:
        mended(root)
    assert picture(db) == before


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, below: Path) -> None:
    original = getattr(os, name)

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith(str(below)):
            raise OSError(code, os.strerror(code), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE], ids=["EIO", "ESTALE"])
@pytest.mark.parametrize("where", ["root", "parent"])
async def test_an_error_of_the_volume_fails_the_run_before_any_change(
    database: Database, db: Db, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    """Neither the records below the broken directory nor those beside it are touched."""
    healthy(db, root)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY) for number in range(6)})
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    before = picture(db)
    async with opened(database, db, apps(root, quarantine="1m")) as bench:
        failing(monkeypatch, "scandir", code, root if where == "root" else root / SLUG / "healthy")
        ran = await bench.run("apps", accept=frozenset({"root", "cap"}))
        assert (ran["outcome"], ran["changed"]) == ("failed", {})
        assert os.strerror(code) in ran["reason"]
        assert bench.own("marks").count_documents({}) == 0
    assert picture(db) == before


async def test_a_volume_that_does_not_answer_fails_the_run_before_any_change(
    database: Database, db: Db, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads hang; the agent does not."""
    healthy(db, root)
    insert(db, {"missing": record("healthy", 99, server_now(db) - DAY)})
    before = picture(db)
    answers = threading.Event()
    original = os.scandir

    def hanging(path: Any) -> Any:
        if str(path).startswith(str(root / SLUG)):
            answers.wait(30)
        return original(path)

    monkeypatch.setattr(os, "scandir", hanging)
    monkeypatch.setattr("agent.execution.Volume", partial(Volume, seconds=0.1))
    try:
        with ThreadPoolExecutor(1) as threads:
            async with opened(database, db, apps(root)) as bench:
                bench.read_volumes_with(threads)
                ran = await bench.run("apps")
                answers.set()
    finally:
        answers.set()
    assert (ran["outcome"], ran["changed"]) == ("failed", {})
    assert "no answer within" in ran["reason"]
    assert picture(db) == before


async def test_files_are_never_touched(database: Database, db: Db, root: Path) -> None:
    """Not even those in the directory of a model whose records all go."""
    healthy(db, root)
    for name in ("healthy/app1/report.json", "gone/notes.txt"):
        (root / SLUG / name).parent.mkdir(parents=True, exist_ok=True)
        (root / SLUG / name).write_text(name)
    insert(db, {f"m{number}": record("gone", number, server_now(db) - DAY) for number in range(6)})

    def tree() -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in sorted(root.rglob("*"))
        }

    before = tree()
    async with opened(database, db, apps(root)) as bench:
        ran = await bench.run("apps")
        await bench.restore(ran["_id"])
    assert ran["changed"] == {"deleted": 6}
    assert tree() == before


async def test_two_jobs_over_one_collection_each_look_at_their_own_volume(
    database: Database, db: Db, root: Path
) -> None:
    """A second instance of the kind, with its own template, root and limits."""
    old = server_now(db) - DAY
    for name in ("one/healthy/app0", "two/0"):
        (root / name).mkdir(parents=True)
    insert(db, {"both": record("healthy", 0, old), "half": record("healthy", 1, old), "none": record("gone", 2, old)})
    jobs: dict[str, Any] = {
        "first": apps(root / "one", path="{model_slug}/app{app_number}", where={"_id": {"$ne": "half"}})["apps"],
        "second": apps(root / "two", path="{app_number}")["apps"],
    }
    async with opened(database, db, jobs) as bench:
        first, second = await bench.pass_()
    assert (first["job"], first["changed"]) == ("first", {"deleted": 1})
    assert (second["job"], second["population"], second["changed"]) == ("second", 2, {"deleted": 1})
    assert left(db) == {"both"}


def test_the_stand_ins_for_a_broken_volume_can_be_undone(tmp_path: Path) -> None:
    """They put back what they moved away."""
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    for breaking in BREAKINGS:
        breaking(root)
        assert not (root / "inside").exists()
        mended(root)
        assert (root / "inside").is_dir()
