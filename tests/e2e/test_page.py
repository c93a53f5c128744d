"""The status page in a real browser, on a real agent and a real MongoDB, through the incident and what else may come.

The screenshots lie in each test's `tmp_path`; `pytest --basetemp=DIR` says where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.request import urlopen

import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, Route, expect
from pymongo.database import Database as RawDatabase
from structlog.testing import capture_logs

from agent.demo.incident import incident
from agent.demo.mongod import Mongod, free_port
from agent.job import Job
from agent.jobs import KINDS
from agent.settings import Settings, load
from tests.conftest import Database
from tests.e2e.browser import NARROW, WIDE, Agent, Watch, axe_core, chromium, proxy, serving, tab, violations

TOKEN: Final = "anns-token-of-sufficient-length"  # noqa: S105 - opens nothing but the agents of these tests
MESSAGE: Final = "Target app no longer exists - cancelled by maintenance service"
# Ids that would do harm where somebody took them for markup, for a path, or for text that ends where it seems to.
HOSTILE: Final = (
    '<img src="x" onerror="window.pwned = 1">',
    "</td></tr></table><script>window.pwned = 2</script>",
    "javascript:window.pwned=3",
    "{{ 7 * 7 }}",
    "../../etc/passwd?x=1#y%00",
    "\u202egnp.exe",
    "line\nbreak\tand\u0000null",
    "long-" * 180,
)
CSP: Final = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"

Serve = Callable[..., Agent]
Scheme = Literal["dark", "light"]
Raw = RawDatabase[dict[str, Any]]


# --------------------------------------------------------------------------------------------------------- the fixtures


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this file; its driver keeps the event loop, so there are no async tests here."""
    with chromium() as started:
        yield started


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The agent's log lines, from its own thread, do not stand between pytest's."""
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    return axe_core()


@pytest.fixture
def settings_of(root: Path, tmp_path: Path) -> Callable[..., Callable[[], Settings[Job]]]:
    """Settings around a database, as a file would say them."""

    def made(uri: str, name: str, **http: Any) -> Callable[[], Settings[Job]]:
        tokens = tmp_path / "tokens"
        tokens.write_text(f"ann:{TOKEN}\n", encoding="utf-8")
        told = {
            "mongodb": {"uri": uri, "database": name},
            "http": {"host": "127.0.0.1", "port": free_port(), "tokens_file": str(tokens), **http},
            # A slot that does not come while a test runs.
            "schedule": {"every": "365d", "run_on_startup": False},
            "jobs": {
                "orphan_apps": {"kind": "orphan_records", "root": str(root)},
                "orphan_tasks": {"kind": "orphan_tasks"},
                "stuck_tasks": {"kind": "stuck_tasks"},
                "old_tasks": {"kind": "retention"},
                "nightly": {"kind": "retention", "enabled": False, "cron": "0 3 * * 0"},
                "look_only": {"kind": "retention", "dry_run": True},
            },
        }
        file = tmp_path / "maintenance.yaml"
        file.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
        return lambda: load(KINDS, path=file, environ={})

    return made


@pytest.fixture
def serve(database: Database, settings_of: Callable[..., Callable[[], Settings[Job]]]) -> Iterator[Serve]:
    """Starts an agent on the test's database; it ends with the test."""
    started: list[Agent] = []

    def start(**http: Any) -> Agent:
        agent = Agent(settings_of(database.uri, database.name, **http))
        agent.start()
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.stop()


@pytest.fixture
def platform(db: Raw, root: Path) -> Raw:
    """The analysis platform on the day of the incident."""
    found = incident(datetime.now(UTC))
    found.write_files(root)
    db.generated_applications.insert_many([dict(record) for record in found.records])
    db.analysis_tasks.insert_many([dict(task) for task in found.tasks])
    return db


@pytest.fixture
def apps(db: Raw, root: Path) -> Raw:
    """Only its applications, 28 of them without a directory."""
    found = incident(datetime.now(UTC))
    for directory in found.directories:
        (root / directory).mkdir(parents=True)
    db.generated_applications.insert_many([dict(record) for record in found.records])
    return db


@pytest.fixture
def opened(browser: Browser) -> Iterator[tuple[Page, Watch]]:
    """A tab that must not complain, ask another host, or put the token into a URL."""
    with tab(browser) as (page, watch):
        yield page, watch
        assert not watch.complaints
        assert not [request.url for request in watch.requests if TOKEN in request.url]
        assert len(watch.hosts()) == 1


def url_of(agent: Agent, path: str = "/") -> str:
    return f"http://127.0.0.1:{agent.port}{path}"


def sign_in(page: Page, url: str) -> None:
    """Opens the page and gives the token."""
    page.goto(url)
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(card(page, "orphan_apps")).to_be_visible()


def card(page: Page, job: str) -> Locator:
    return page.get_by_role("article", name=job, exact=True)


def sheet(page: Page) -> Locator:
    return page.locator("#sheet")


def figure(place: Locator, label: str) -> Locator:
    """A number with its name above it."""
    return place.locator(".figure", has=place.page.get_by_text(label, exact=True)).locator("strong").first


def press(place: Page | Locator, name: str) -> None:
    place.get_by_role("button", name=name, exact=True).click()


def close_sheet(page: Page) -> None:
    page.keyboard.press("Escape")
    expect(sheet(page)).to_be_hidden()


def photograph(page: Page, file: Path, *, whole: bool = True) -> None:
    page.screenshot(path=file, full_page=whole)
    assert file.stat().st_size


def fits(page: Page) -> bool:
    """Whether nothing has to be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


# ------------------------------------------------------------------------------------------------------------- incident


def test_the_incident_is_previewed_applied_and_undone(  # noqa: PLR0915 - one story, from its beginning to its end
    platform: Raw, serve: Serve, opened: tuple[Page, Watch], axe: str, tmp_path: Path
) -> None:
    """28 records found and deleted, 469 tasks cancelled; restored, they are back as they were, and held."""
    page, _ = opened
    agent = serve()
    tasks_before = list(platform.analysis_tasks.find().sort("_id"))
    page.goto(url_of(agent))
    expect(page.get_by_text("All is well")).to_be_visible()
    photograph(page, tmp_path / "sign-in.png")
    assert not violations(page, axe)
    sign_in(page, url_of(agent))

    # Preview: 28, each with its reason and with what holds it; nothing is changed.
    press(page, "Preview orphan_apps")
    expect(figure(sheet(page), "Found")).to_have_text("28")
    expect(sheet(page).locator(".items tbody tr")).to_have_count(28)
    first = sheet(page).locator(".items tbody tr").first
    expect(first).to_contain_text(re.compile(r"directory generated/apps/\S+ is missing"))
    expect(first).to_contain_text("quarantine")
    expect(sheet(page)).to_contain_text("28 items are in quarantine")
    photograph(page, tmp_path / "plan-light.png", whole=False)
    assert not violations(page, axe)
    assert platform.generated_applications.count_documents({}) == 328

    # Apply: exactly these.
    press(page, "Apply these 28")
    expect(page.locator("#sheet-notice")).to_contain_text("28 documents changed")
    expect(figure(sheet(page), "Changed")).to_have_text("28")
    assert platform.generated_applications.count_documents({}) == 300
    close_sheet(page)

    # Their tasks: a long plan, page by page.
    press(page, "Preview orphan_tasks")
    expect(figure(sheet(page), "Found")).to_have_text("469")
    expect(sheet(page)).to_contain_text("50 of 469 shown")
    press(sheet(page), "Load 50 more")
    expect(sheet(page).locator(".items tbody tr")).to_have_count(100)
    press(page, "Apply these 469")
    expect(page.locator("#sheet-notice")).to_contain_text("469 documents changed")
    expect(figure(sheet(page), "Changed")).to_have_text("469")
    assert platform.analysis_tasks.count_documents({"status": "CANCELLED", "error_message": MESSAGE}) == 469

    # Restore: asked first, then as it was.
    press(sheet(page), "Restore …")
    question = page.locator("#confirm")
    expect(question).to_contain_text("puts back the 469 documents")
    expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    photograph(page, tmp_path / "question.png", whole=False)
    assert not violations(page, axe)
    press(question, "Restore 469")
    expect(page.locator("#sheet-notice")).to_have_text("469 restored and held.")
    expect(sheet(page).locator(".items tbody tr").first).to_contain_text("restored")
    assert list(platform.analysis_tasks.find().sort("_id")) == tasks_before
    close_sheet(page)

    # The next look finds them again, and leaves them alone.
    press(page, "Preview orphan_tasks")
    expect(figure(sheet(page), "Held")).to_have_text("469")
    expect(sheet(page)).to_contain_text("469 items are held")
    expect(sheet(page).get_by_role("button", name=re.compile("^Apply"))).to_have_count(0)
    # One is released: an apply would take that one.
    sheet(page).get_by_role("button", name=re.compile("^Release")).first.click()
    expect(sheet(page).get_by_role("button", name="Apply these 1", exact=True)).to_be_visible()
    close_sheet(page)

    # The history knows it all, the card its last runs.
    row = page.locator(".runs tbody tr", has_text="plan applied").filter(has_text="orphan_tasks")
    expect(row).to_contain_text("469")
    expect(page.locator(".runs tbody tr", has_text="restore").first).to_contain_text("469")
    expect(card(page, "orphan_tasks").get_by_role("img")).to_have_accessible_name(
        re.compile("Duration of the last 4 runs")
    )
    expect(page.locator("#totals")).to_contain_text("469")


def test_it_fits_and_can_be_read_in_every_size_and_scheme(
    platform: Raw, serve: Serve, opened: tuple[Page, Watch], axe: str, tmp_path: Path
) -> None:
    """Wide and narrow, light and dark: nothing is cut off, and axe-core finds nothing serious."""
    page, _ = opened
    platform.generated_applications.delete_many({"model_slug": {"$in": ["juniper-6b", "spruce-2b"]}})
    sign_in(page, url_of(serve()))
    press(page, "Run now: orphan_tasks")
    press(page.locator("#confirm"), "Run it")
    expect(figure(sheet(page), "Changed")).not_to_have_text("0")
    close_sheet(page)
    press(page, "Preview all")
    expect(sheet(page).get_by_role("region", name="old_tasks")).to_contain_text("412")
    expect(sheet(page).get_by_role("region", name="look_only")).not_to_contain_text("Loading")
    photograph(page, tmp_path / "pass.png", whole=False)
    close_sheet(page)
    looks: tuple[tuple[str, tuple[int, int], Scheme], ...] = (
        ("wide-dark", WIDE, "dark"),
        ("wide-light", WIDE, "light"),
        ("narrow-light", NARROW, "light"),
        ("narrow-dark", NARROW, "dark"),
    )
    for name, size, scheme in looks:
        photograph_as(page, tmp_path / f"{name}.png", size, scheme)
        if name in {"wide-light", "narrow-dark"}:  # each size and each scheme once
            assert not violations(page, axe)
    press(page, "Preview stuck_tasks")
    expect(sheet(page).locator(".items tbody tr").first).to_be_visible()
    photograph(page, tmp_path / "plan-narrow-dark.png", whole=False)
    assert not violations(page, axe)
    assert fits(page)


def photograph_as(page: Page, file: Path, size: tuple[int, int], scheme: Scheme) -> None:
    """The page in another size and scheme; it fits."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    photograph(page, file)
    assert fits(page)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_refusal_says_what_was_seen_and_what_can_be_done(
    apps: Raw, serve: Serve, opened: tuple[Page, Watch], root: Path, axe: str, tmp_path: Path
) -> None:
    """An empty volume is refused in plain words; consent is asked for, never assumed, and stands in the record."""
    page, _ = opened
    (root / "generated").rename(root / "elsewhere")
    sign_in(page, url_of(serve()))
    press(page, "Run now: orphan_apps")
    question = page.locator("#confirm")
    expect(question).to_contain_text("deletes records of generated_applications whose directory is missing")
    press(question, "Run it")
    expect(sheet(page)).to_contain_text("Refused: the volume is not proven")
    expect(sheet(page)).to_contain_text(f"none of the directories of 328 records is there under {root}")
    expect(sheet(page)).to_contain_text("See that the volume is mounted")
    photograph(page, tmp_path / "refused.png", whole=False)

    # Who says no to the question changes nothing.
    press(sheet(page), "Consent and run …")
    expect(question).to_contain_text("none of the directories of 328 records is there")
    expect(question.get_by_role("checkbox")).not_to_be_checked()
    consent = question.get_by_role("button", name="Consent to “root” and run")
    expect(consent).to_be_disabled()
    photograph(page, tmp_path / "consent.png", whole=False)
    assert not violations(page, axe)
    page.keyboard.press("Escape")
    expect(question).to_be_hidden()
    assert apps.maintenance_runs.count_documents({}) == 1

    # Who consents does so on record; the cap then has its own say.
    press(sheet(page), "Consent and run …")
    question.get_by_role("checkbox").check()
    consent.click()
    expect(sheet(page)).to_contain_text("Refused: more than one run may change")
    expect(sheet(page)).to_contain_text("328 items are 100% of 328")
    expect(sheet(page)).to_contain_text("Consented to")
    record = apps.maintenance_runs.find_one(sort=[("started_at", -1)])
    assert record is not None
    assert (record["accept"], record["requested_by"], record["outcome"]) == (["root"], "ann", "refused")
    close_sheet(page)
    expect(card(page, "orphan_apps")).to_contain_text("Refused: more than one run may change.")

    # What nobody may consent to offers no consent.
    (root / "elsewhere").rename(root / "generated")
    root.rename(root.with_suffix(".away"))
    try:
        press(page, "Preview orphan_apps")
        expect(sheet(page)).to_contain_text("Refused: the volume is not proven")
        expect(sheet(page).get_by_role("button", name="Consent and run …")).to_have_count(0)
        expect(sheet(page).get_by_role("button", name=re.compile("^Apply"))).to_have_count(0)
    finally:
        root.with_suffix(".away").rename(root)
    assert apps.generated_applications.count_documents({}) == 328


def test_a_plan_over_the_cap_says_so_and_can_be_applied_all_the_same(
    platform: Raw, serve: Serve, opened: tuple[Page, Watch]
) -> None:
    """The preview names the cap; apply carries out exactly these items."""
    page, _ = opened
    sign_in(page, url_of(serve()))
    press(page, "Preview stuck_tasks")
    expect(sheet(page)).to_contain_text("As a run this would be refused: more than one run may change")
    expect(sheet(page)).to_contain_text("Look at the items: apply carries out exactly this plan")
    close_sheet(page)
    expect(card(page, "stuck_tasks")).to_contain_text("Would be refused")
    press(page, "What you can do: stuck_tasks")
    found = int(figure(sheet(page), "Found").inner_text())
    press(page, f"Apply these {found}")
    expect(page.locator("#sheet-notice")).to_contain_text(f"{found} documents changed")
    close_sheet(page)
    # A plan is applied once: opened again, it says what became of it.
    page.locator(".runs tbody tr", has_text="over the cap").first.click()
    expect(sheet(page).locator(".items tbody tr").first).to_contain_text("done")
    expect(sheet(page).get_by_role("button", name=re.compile("^Apply"))).to_have_count(0)
    assert platform.maintenance_runs.count_documents({"trigger": "plan"}) == 1


# ------------------------------------------------------------------------------------------------------------ documents


def test_hostile_ids_and_reasons_are_text(
    db: Raw, root: Path, serve: Serve, opened: tuple[Page, Watch], tmp_path: Path
) -> None:
    """They are shown as they are, run nothing, break nothing, and can be held and released like any other."""
    page, _ = opened
    old = datetime.now(UTC) - timedelta(days=3)
    (root / "generated/apps/fine/app0").mkdir(parents=True)
    records = [{"_id": "fine", "model_slug": "fine", "app_number": 0, "created_at": old}]
    records += [
        {"_id": id_, "model_slug": f"<b>&{number}</b>", "app_number": number, "created_at": old}
        for number, id_ in enumerate(HOSTILE)
    ]
    records.append({"_id": {"a": "<i>", "b": 1}, "model_slug": "embedded", "app_number": 1, "created_at": old})
    db.generated_applications.insert_many(records)
    sign_in(page, url_of(serve()))
    press(page, "Preview orphan_apps")
    expect(sheet(page).locator(".items tbody tr")).to_have_count(len(HOSTILE) + 1)
    shown = sheet(page).locator(".items .document").all_text_contents()
    unseen = re.compile("[\u0000-\u001f\u202e]")
    readable = {unseen.sub(lambda found: f"\\u{ord(found[0]):04x}", id_) for id_ in HOSTILE}
    assert set(shown) == {*readable, '{"a":"<i>","b":1}'}
    photograph(page, tmp_path / "hostile.png", whole=False)
    for number in range(len(HOSTILE) + 1):
        sheet(page).locator(".items tbody tr").nth(number).get_by_role("button", name=re.compile("^Hold")).click()
        expect(sheet(page).locator(".items tbody tr").nth(number)).to_contain_text("hold")
    held = [mark["_id"]["id"] for mark in db.maintenance_marks.find({"_id.type": "hold"})]
    assert sorted(map(str, held)) == sorted(str(record["_id"]) for record in records[1:])
    sheet(page).get_by_role("button", name=re.compile("^Release")).first.click()
    # The notice of a hold ends with these words too ("until it is released"): the buttons tell that it was done.
    expect(sheet(page).get_by_role("button", name=re.compile("^Release"))).to_have_count(len(HOSTILE))
    expect(page.locator("#sheet-notice")).to_contain_text("is released")
    assert db.maintenance_marks.count_documents({"_id.type": "hold"}) == len(HOSTILE)
    # One of them is deleted and restored by itself, too.
    press(page, "Apply these 1")
    expect(page.locator("#sheet-notice")).to_contain_text("1 document changed")
    assert db.generated_applications.count_documents({}) == len(records) - 1
    sheet(page).locator(".items tbody tr").get_by_role("button", name=re.compile("^Restore")).click()
    press(page.locator("#confirm"), "Restore it")
    expect(page.locator("#sheet-notice")).to_have_text("1 restored and held.")
    assert db.generated_applications.count_documents({}) == len(records)
    page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    assert fits(page)
    assert page.evaluate("window.pwned") is None
    assert not page.locator("#sheet img, #sheet script, #sheet b, #sheet i").count()


def test_a_document_that_changed_since_is_a_conflict(platform: Raw, serve: Serve, opened: tuple[Page, Watch]) -> None:
    """It is left as it is, and the page says so."""
    page, _ = opened
    sign_in(page, url_of(serve()))
    press(page, "Run now: old_tasks")
    press(page.locator("#confirm"), "Run it")
    expect(figure(sheet(page), "Changed")).to_have_text("412")
    gone = platform.maintenance_items.find_one({"state": "done"}, sort=[("_id", 1)])
    assert gone is not None
    platform.analysis_tasks.insert_one({"_id": gone["id"], "status": "PENDING", "created_at": datetime.now(UTC)})
    press(sheet(page), "Restore …")
    press(page.locator("#confirm"), "Restore 412")
    expect(page.locator("#sheet-notice")).to_have_text(
        "411 restored and held, 1 conflict: changed since, and left as they are."
    )
    expect(sheet(page).locator(".items tbody tr").first).to_contain_text("conflict")


# ------------------------------------------------------------------------------------------------------------- steering


def test_pause_and_the_countdown(apps: Raw, serve: Serve, opened: tuple[Page, Watch], axe: str) -> None:
    """A job, or everything; the clock of the card stands and goes with it."""
    page, _ = opened
    sign_in(page, url_of(serve()))
    expect(card(page, "old_tasks")).to_contain_text(re.compile(r"next run in \d+ (d|h|min|s)"))
    expect(card(page, "nightly")).to_contain_text("disabled")
    expect(card(page, "look_only")).to_contain_text("dry run")
    press(page, "Pause old_tasks")
    expect(card(page, "old_tasks").locator(".next")).to_have_text("paused")
    assert apps.maintenance_controls.count_documents({"_id": "pause/old_tasks"}) == 1
    press(page, "Resume old_tasks")
    expect(card(page, "old_tasks")).to_contain_text("next run in")
    press(page, "Pause everything")
    expect(page.locator("#banners")).to_contain_text("Everything is paused.")
    expect(page.locator("#overall")).to_have_text("Everything is paused")
    assert not violations(page, axe)
    page.locator("#all-jobs").get_by_role("button", name="Resume everything").click()
    expect(page.locator("#banners")).not_to_contain_text("paused")
    assert apps.maintenance_controls.count_documents({"_id": {"$regex": "^pause"}}) == 0


def test_all_jobs_run_as_one_pass_and_the_history_filters(
    platform: Raw, serve: Serve, opened: tuple[Page, Watch]
) -> None:
    """In cascade order; the history can be narrowed to a job, an outcome, a trigger or the pass, and goes on."""
    page, watch = opened
    sign_in(page, url_of(serve()))
    press(page, "Run all now …")
    expect(page.locator("#confirm li")).to_have_count(5)
    press(page.locator("#confirm"), "Run them")
    for job in ("orphan_apps", "orphan_tasks", "stuck_tasks", "old_tasks", "look_only"):
        expect(sheet(page).get_by_role("region", name=job)).not_to_contain_text(re.compile("waiting|running"))
    expect(sheet(page).get_by_role("region", name="stuck_tasks")).to_contain_text("refused")
    expect(sheet(page).get_by_role("region", name="old_tasks")).to_contain_text("412")
    close_sheet(page)
    rows = page.locator(".runs tbody tr")
    expect(rows).to_have_count(5)
    page.get_by_role("combobox", name="Outcome").select_option("refused")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("stuck_tasks")
    page.get_by_role("combobox", name="Outcome").select_option("")
    page.get_by_role("combobox", name="Job").select_option("old_tasks")
    expect(rows).to_have_count(1)
    page.get_by_role("combobox", name="Trigger").select_option("cli")
    expect(page.locator("#history")).to_contain_text("No run matches the filter.")
    page.get_by_role("combobox", name="Trigger").select_option("")
    rows.first.get_by_role("button").click()
    expect(page).to_have_url(re.compile("#run/"))
    page.reload()  # such an address can be passed on
    expect(figure(sheet(page), "Changed")).to_have_text("412")
    sheet(page).get_by_role("button", name=re.compile("^Show all runs of the pass")).click()
    expect(sheet(page)).to_be_hidden()
    expect(rows).to_have_count(5)
    press(page, "All passes again")

    # More than a page of them.
    run = platform.maintenance_runs.find_one({"job": "old_tasks"})
    assert run is not None
    older = [
        {**run, "_id": f"older-{number:02}", "started_at": run["started_at"] - timedelta(hours=number + 1)}
        for number in range(40)
    ]
    platform.maintenance_runs.insert_many(older)
    page.reload()
    expect(rows).to_have_count(25)
    press(page, "Load more")
    expect(rows).to_have_count(45)
    expect(page.get_by_role("button", name="Load more")).to_have_count(0)
    assert watch.calls("/api/maintenance/runs")


# --------------------------------------------------------------------------------------------------------------- access


def test_the_token_is_asked_for_once_and_kept_for_the_tab(apps: Raw, serve: Serve, browser: Browser) -> None:
    """A wrong one is said; a reload keeps it; another tab does not have it; signing out forgets it."""
    del apps
    url = url_of(serve())
    with tab(browser) as (page, watch):
        page.goto(url)
        expect(page.get_by_label("Token")).to_be_focused()
        assert not watch.calls("/api/maintenance/status")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("Enter a token.")
        for wrong in ("wrong", "schlüssel-ключ"):
            page.get_by_label("Token").fill(wrong)
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("does not know this token")
            expect(page.get_by_label("Token")).to_be_focused()
        assert all("401" in complaint for complaint in watch.complaints)
        watch.complaints.clear()
        sign_in(page, url)
        assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
        assert page.evaluate("Object.values(localStorage)") == []
        page.reload()
        expect(card(page, "orphan_apps")).to_be_visible()
        with tab(browser) as (other, _):
            other.goto(url)
            expect(other.get_by_label("Token")).to_be_visible()
        press(page, "Sign out")
        expect(page.get_by_label("Token")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0
        expect(page.locator("#jobs")).to_be_hidden()
        assert not watch.complaints
        assert not [request.url for request in watch.requests if TOKEN in request.url]


def test_without_a_tokens_file_the_page_says_that_nobody_has_access(serve: Serve, opened: tuple[Page, Watch]) -> None:
    """Health is shown all the same."""
    page, _ = opened
    page.goto(url_of(serve(tokens_file=None)))
    expect(page.locator("#sign-in")).to_contain_text("Nobody has access yet")
    expect(page.locator("#health")).to_contain_text("mongodb")
    expect(page.get_by_label("Token")).to_have_count(0)


@pytest.mark.parametrize("stripping", [False, True], ids=["proxy-keeps-the-prefix", "proxy-strips-the-prefix"])
def test_it_works_behind_a_prefix(apps: Raw, serve: Serve, opened: tuple[Page, Watch], stripping: bool) -> None:
    """Every URL is relative; the content security policy holds."""
    del apps
    page, watch = opened
    agent = serve(base_path="/ops/maintenance")
    with proxy(agent.port, "/ops/maintenance") as port:
        url = f"http://127.0.0.1:{port if stripping else agent.port}/ops/maintenance/"
        with urlopen(url, timeout=5) as answer:
            assert answer.headers["Content-Security-Policy"] == CSP
        sign_in(page, url)
        press(page, "Preview orphan_apps")
        expect(figure(sheet(page), "Found")).to_have_text("28")
        close_sheet(page)
        paths = {request.url.partition(f":{port if stripping else agent.port}")[2] for request in watch.requests}
        assert all(path.startswith("/ops/maintenance/") for path in paths)
        # The policy is enforced: what is inline does not run.
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.inline = 1'}))"
        )
        assert page.evaluate("window.inline") is None
        assert any("Content Security Policy" in complaint for complaint in watch.complaints)
        watch.complaints.clear()
        page.goto("about:blank")  # lets go of the proxy


# -------------------------------------------------------------------------------------------------------------- trouble


def test_an_agent_or_a_mongodb_that_is_away_is_seen(
    browser: Browser, settings_of: Callable[..., Callable[[], Settings[Job]]], axe: str, tmp_path: Path
) -> None:
    """The page says since when, keeps what it knows, tries less and less often, and goes on by itself."""
    with Mongod() as mongod, tab(browser) as (page, watch):
        settings = settings_of(mongod.uri, "app")
        page.clock.install()
        with serving(settings) as agent:
            sign_in(page, url_of(agent))
            mongod.kill()
            page.clock.fast_forward(6000)
            expect(page.locator("#overall")).to_have_text(re.compile("away|failing"))
            expect(page.locator("#banners")).to_contain_text("MongoDB is away since")
            expect(page.locator("#health")).to_contain_text("failing")
            expect(card(page, "orphan_apps")).to_be_visible()
            photograph(page, tmp_path / "mongodb-away.png")
            assert not violations(page, axe)
        page.clock.fast_forward(6000)
        expect(page.locator("#banners")).to_contain_text("The agent cannot be reached since")
        photograph(page, tmp_path / "unreachable.png")
        asked = watch.calls("/healthz")
        for _ in range(4):
            page.clock.fast_forward(5000)
        page.wait_for_timeout(200)
        assert watch.calls("/healthz") - asked <= 2  # after 5 s, then after 10 more
        mongod.start()
        with serving(settings):
            press(page, "Try now")
            expect(page.locator("#overall")).to_have_text("All is well")
            expect(page.locator("#banners .banner")).to_have_count(0)
            page.goto("about:blank")


def test_a_hidden_page_does_not_ask(serve: Serve, opened: tuple[Page, Watch]) -> None:
    """It asks every five seconds while somebody looks, and again as soon as somebody does."""
    page, watch = opened
    page.clock.install()
    page.goto(url_of(serve()))
    expect(page.locator("#overall")).to_have_text("All is well")
    hide(page, hidden=True)
    asked = watch.calls("/healthz")
    for _ in range(3):
        page.clock.fast_forward(10_000)
    page.wait_for_timeout(200)
    assert watch.calls("/healthz") == asked
    hide(page, hidden=False)
    page.wait_for_timeout(300)
    assert watch.calls("/healthz") == asked + 1


def hide(page: Page, *, hidden: bool) -> None:
    """What a browser does when its tab is left, or comes back."""
    page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


# ---------------------------------------------------------------------------------------------------------- allocations


def test_allocations_are_drawn_where_there_are_any(
    serve: Serve, opened: tuple[Page, Watch], axe: str, tmp_path: Path
) -> None:
    """Capacity, booked, owed and used of each provider; one that was not reached says so; without any, nothing."""
    page, _ = opened
    agent = serve()
    sign_in(page, url_of(agent))
    expect(page.locator("#allocations-section")).to_be_hidden()
    gib = 2**30
    allocations = [
        {
            "provider": "aws-<eu>-1",
            "up": True,
            "transition": 2,
            "resources": {
                "cpu": {"capacity": 64_000, "booked": 40_500, "owed": 38_000, "used": 31_250},
                "memory": {"capacity": 256 * gib, "booked": 260 * gib, "owed": 180 * gib, "used": 140 * gib},
                "storage": {"capacity": None, "booked": 5 * gib, "owed": 0, "used": None},
            },
        },
        {"provider": "on-premises", "up": False, "transition": 0, "resources": {}},
    ]

    def add(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=json.dumps({**answer.json(), "allocations": allocations}))

    page.route("**/api/maintenance/status", add)
    page.reload()
    section = page.get_by_role("region", name="Allocations")
    expect(section).to_be_visible()
    expect(section).to_contain_text("aws-<eu>-1")
    expect(section).to_contain_text("40.5")
    expect(section).to_contain_text("260 GiB")
    expect(section.locator("td.bad-text")).to_have_text(["260 GiB"])
    expect(section).to_contain_text("2 in transition")
    expect(section).to_contain_text("unknown")
    expect(section).to_contain_text("not reached")
    photograph(page, tmp_path / "allocations.png")
    assert not violations(page, axe)


# ------------------------------------------------------------------------------------------------------------- keyboard


def test_everything_can_be_done_with_the_keyboard(apps: Raw, serve: Serve, opened: tuple[Page, Watch]) -> None:
    """The focus goes into a dialog, stays in it, and returns to where it came from; drawing anew does not move it."""
    del apps
    page, _ = opened
    sign_in(page, url_of(serve()))
    preview = page.get_by_role("button", name="Preview orphan_apps", exact=True)
    preview.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#sheet-title")).to_be_focused()
    expect(sheet(page).locator(".items tbody tr")).to_have_count(28)
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || Boolean(document.activeElement.closest('#sheet'))"
        )
    page.keyboard.press("Escape")
    expect(preview).to_be_focused()
    with page.expect_response("**/healthz?verbose"), page.expect_response("**/api/maintenance/runs*"):
        pass
    expect(preview).to_be_focused()
    run = page.get_by_role("button", name="Run now: orphan_apps", exact=True)
    run.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#confirm").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(run).to_be_focused()
    # A choice of theme stays.
    page.get_by_label("Theme").select_option("dark")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
