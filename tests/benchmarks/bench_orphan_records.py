"""Orphan records: a fifth of SIZE records, each with a directory, but for two in a hundred."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from tests.benchmarks.figures import Figures
from tests.benchmarks.world import Db, agent, insert, ran, timing
from tests.conftest import Database
from tests.harness import server_now

SAMPLE = 20_000
TRIES = 3
FEW = 200
RECORDS = "generated_applications"
FIELDS = {"_id": 0, "model_slug": 1, "app_number": 1}


@pytest.mark.parametrize("parents", [FEW, 20_000])
async def test_orphan_records(database: Database, db: Db, size: int, root: Path, parents: int) -> None:
    records = size // 5
    name = "few" if parents == FEW else "many"
    parents = min(parents, records // 10)
    _make(db, root, records, parents, server_now(db))
    job = {"kind": "orphan_records", "root": str(root), "path": "{model_slug}/app{app_number}"}
    figures = Figures(f"orphan_records_{name}", f"{records:,} records under {parents:,} parents", size, "standalone")
    async with agent(database, db, "records", job) as bench:
        runs = [await ran(bench, "records", dry_run=True) for _ in range(TRIES)]
    ours = min(runs, key=lambda one: one.seconds)
    assert ours.record["found"] == {"orphan": len(range(0, records, 50))}
    figures.seconds("ours, finding them", ours.seconds, records)

    floor = min(_floor(db, root) for _ in range(TRIES))
    figures.seconds("os.scandir and one covered cursor (the floor)", floor, records)
    sample = min(SAMPLE, records)
    each = figures.sampled("os.path.exists per record", _exists(db, root, sample), sample, records)
    figures.at_most("times the floor", ours.seconds / floor, 1.5)
    if name == "few":
        figures.at_least("faster than os.path.exists per record", each / ours.seconds, 10)
    figures.at_most("loop lag, p99", ours.lag, 20, "ms")
    figures.write()


def _make(db: Db, root: Path, records: int, parents: int, now: dt.datetime) -> None:
    for number in range(parents):
        (root / f"model-{number}").mkdir()
    for number in range(records):
        if number % 50:
            os.mkdir(f"{root}/model-{number % parents}/app{number // parents}")  # noqa: PTH102 - a fifth of a million
    created = now - dt.timedelta(days=1)
    insert(
        db,
        RECORDS,
        (
            {"model_slug": f"model-{n % parents}", "app_number": n // parents, "created_at": created}
            for n in range(records)
        ),
    )


def _floor(db: Db, root: Path) -> float:
    with timing() as seconds:
        there = {(parent.name, entry.name) for parent in os.scandir(root) for entry in os.scandir(parent)}
        keys = db[RECORDS].find({}, FIELDS, hint="model_slug_1_app_number_1")
        assert [key for key in keys if (key["model_slug"], f"app{key['app_number']}") not in there]
    return seconds()


def _exists(db: Db, root: Path, sample: int) -> float:
    with timing() as seconds:
        for record in db[RECORDS].find({}, FIELDS).limit(sample):
            os.path.exists(f"{root}/{record['model_slug']}/app{record['app_number']}")  # noqa: PTH110 - the peer's way
    return seconds()
