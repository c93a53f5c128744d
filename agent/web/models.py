"""What requests and answers look like: the models that validate, and that the OpenAPI document is made from.

Requests are strict: an unknown key is an error. Answers are described, not filtered: they may carry more than is
written here, and a client should pass over what it does not know.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from agent.job import Action, Guard, Hold, Outcome, Trigger, What
from agent.settings import parse_duration

LONGEST_WAIT: Final = dt.timedelta(seconds=60)  # what proxies commonly let a request last
MOST_ENTRIES: Final = 1000
ID_LENGTH: Final = 1024  # what MongoDB indexed at most for years; percent-encoded it still fits into a request line
MAX_NAMESPACE: Final = 255  # bytes of `database.collection`, the server's own limit
MAX_DATABASE: Final = 63  # bytes, the server's own limit

JOB_PATTERN: Final = "[a-z0-9_-]{1,100}"
RUN_PATTERN: Final = "[A-Za-z0-9._:-]{1,100}"
WAIT_PATTERN: Final = "^([0-9]{1,4}m)?([0-9]{1,6}s)?([0-9]{1,9}ms)?$"

DATABASE_PATTERN: Final = r'^[^/\\. "$*<>:|?\u0000-\u001f]+$'
COLLECTION_PATTERN: Final = r"^[^.$\u0000-\u001f]+([.][^.$\u0000-\u001f]+)*$"

Consent = Literal["root", "targets", "cap"]


# --------------------------------------------------------------------------------------------------------- the requests


class Request(BaseModel):
    """A body or a query. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Request):
    """A request without content; the body may be missing, or an empty object."""


def _waited(text: str) -> str:
    parse_duration(text)
    return text


def _digits(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("expected a whole number")
    return value


def _whole_text(text: str) -> str:
    """Refuses what the query carried as bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected UTF-8") from None
    return text


Wait = Annotated[
    str,
    Field(
        min_length=2,
        pattern=WAIT_PATTERN,
        description="How long the answer may wait for the end, as a duration; at most 60 s are waited.",
        examples=["20s", "500ms"],
    ),
    AfterValidator(_waited),
]
JobName = Annotated[str, Field(pattern=f"^{JOB_PATTERN}$")]
RunId = Annotated[str, Field(pattern=f"^{RUN_PATTERN}$")]
EntryId = Annotated[str, Field(pattern="^[0-9a-f]{24}$")]
DocumentId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=ID_LENGTH,
        description="The `_id` as text: Extended JSON if it parses as such, else a string, else an ObjectId's digits.",
        examples=['{"$oid": "507f1f77bcf86cd799439011"}', "507f1f77bcf86cd799439011", '"a string"', "42"],
    ),
    AfterValidator(_whole_text),
]
EntryLimit = Annotated[
    int, Field(ge=1, le=MOST_ENTRIES, description="How many entries at most."), BeforeValidator(_digits)
]


class WaitRequest(Request):
    """Whether the answer waits for the end."""

    wait: Wait | None = None

    @property
    def seconds(self) -> float:
        """How long to wait."""
        asked = dt.timedelta() if self.wait is None else parse_duration(self.wait)
        return min(asked, LONGEST_WAIT).total_seconds()


class RunRequest(WaitRequest):
    """How a job, or all of them, should run."""

    dry_run: StrictBool = Field(default=False, description="Only look: store a plan, change nothing.")
    accept: list[Consent] = Field(
        default_factory=list, max_length=8, description="Refusals that the operator consents to."
    )


class RestoreRequest(WaitRequest):
    """What of a run should be undone."""

    item: DocumentId | None = Field(
        default=None, description="One document of the run, its `_id` as text; without it the whole run."
    )


class HoldRequest(Request):
    """The document that a hold is on."""

    database: Annotated[str, Field(min_length=1, max_length=MAX_DATABASE, pattern=DATABASE_PATTERN)] | None = Field(
        default=None, description="The database; without it the configured one."
    )
    collection: Annotated[str, Field(min_length=1, max_length=MAX_NAMESPACE, pattern=COLLECTION_PATTERN)]
    id: DocumentId
    reason: Annotated[str, Field(max_length=1000)] | None = Field(default=None, description="Why, for people.")

    @property
    def possible(self) -> bool:
        """Whether MongoDB could have such names: it counts bytes, where the patterns count characters."""
        database = len((self.database or "").encode())
        return database <= MAX_DATABASE and database + 1 + len(self.collection.encode()) <= MAX_NAMESPACE


class RunsQuery(Request):
    """Which runs, and how many."""

    job: JobName | None = Field(default=None, description="Only runs of this job.")
    pass_id: RunId | None = Field(default=None, alias="pass", description="Only runs of this pass.")
    outcome: Outcome | None = Field(default=None, description="Only runs that ended so.")
    trigger: Trigger | None = Field(default=None, description="Only runs that were started so.")
    before: RunId | None = Field(default=None, description="Only runs older than this one: the `next` of a page.")
    limit: EntryLimit = 50


class ItemsQuery(Request):
    """Which items, and how many."""

    after: EntryId | None = Field(default=None, description="Only items after this one: the `next` of a page.")
    limit: EntryLimit = 100


class ExplainQuery(Request):
    """Which document."""

    id: DocumentId


# ---------------------------------------------------------------------------------------------------------- the answers


class Answer(BaseModel):
    """An answer. It may carry more than is described."""

    model_config = ConfigDict(extra="allow")


class ProblemEntry(Answer):
    """One thing that is wrong with a request or with the configuration."""

    path: str = Field(description="Where: a key's path, or empty.")
    message: str


class Problem(Answer):
    """A problem document (RFC 9457)."""

    type: str = Field(description="The kind of problem, for programs.")
    title: str = Field(description="The kind of problem, in words.")
    status: int
    detail: str = Field(description="What happened this time.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="Leads to the log.")
    errors: list[ProblemEntry] = Field(default_factory=list, description="Each thing that is wrong.")
    guard: Guard | None = Field(default=None, description="The guard that refused.")
    dependency: str | None = Field(default=None, description="What is away.")


class Sample(Answer):
    """One of the first items of a run."""

    id: Any = Field(description="The document's `_id`, in Extended JSON.")
    action: Action | None = Field(description="What was to be done; null: it is only reported.")
    reason: str


class Run(Answer):
    """The record of a run. Zeros are left out of the maps."""

    id: str = Field(alias="_id")
    pass_id: str | None = Field(default=None, alias="pass", description="The pass that it belongs to.")
    job: str
    kind: str
    trigger: Trigger
    requested_by: str | None = Field(default=None, description="The name of the token, or who else asked.")
    dry_run: bool
    scheduled_for: AwareDatetime | None = None
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = Field(default=None, description="null: it is running.")
    seconds: float | None = None
    outcome: Outcome | Literal["skipped"] | None = Field(
        default=None,
        description="null: it is running, or waits. `skipped` runs of a pass did not begin: no record is kept.",
    )
    reason: str | None = Field(default=None, description="Why it was refused, or failed.")
    guard: Guard | None = Field(default=None, description="The guard that refused it.")
    consent: Consent | None = Field(
        default=None, description="What `accept` has to name so that such a run is not refused; null: nothing helps."
    )
    population: int = Field(default=0, description="Out of how many it selected.")
    found: dict[What, int] = Field(default_factory=dict, description="What it found; what is held included.")
    held: dict[Hold, int] = Field(default_factory=dict, description="What it left alone, and why.")
    changed: dict[Action, int] = Field(default_factory=dict, description="What it changed.")
    failed: int = Field(default=0, description="Items that could not be changed.")
    complete: bool = Field(default=False, description="Whether it did all there was to do.")
    would_refuse: Guard | None = Field(default=None, description="The guard that would refuse the plan as a real run.")
    sample: list[Sample] = Field(default_factory=list, description="The first 100 items.")
    agent: str | None = Field(default=None, description="The replica that ran it.")
    term: int | None = Field(default=None, description="The term of its lease.")


class Runs(Answer):
    """A page of runs, the newest first."""

    runs: list[Run]
    next: str | None = Field(description="Pass it as `before` for the next page; null: this is the last.")


class Pass(Answer):
    """A pass and its runs."""

    pass_id: str = Field(alias="pass")
    runs: list[Run]


class Item(Answer):
    """One document that a run planned to change, or changed."""

    id: str = Field(alias="_id", description="The entry itself.")
    database: str | None = None
    collection: str | None = None
    document_id: Any = Field(
        default=None, alias="id", description="The document's `_id`, in Extended JSON; as text, `restore` takes it."
    )
    what: What | None = Field(default=None, description="What it is.")
    action: Action | None = None
    reason: str | None = None
    state: str | None = Field(default=None, description="planned, pending, done, restored, conflict or stale.")
    held: Hold | None = Field(default=None, description="What would hold it.")


class Items(Answer):
    """A page of a run's items."""

    items: list[Item]
    next: str | None = Field(description="Pass it as `after` for the next page; null: this is the last.")


class Job(Answer):
    """A configured job."""

    name: str
    kind: str
    enabled: bool
    paused: bool
    settings: dict[str, Any] = Field(default_factory=dict, description="Its configuration, defaults included.")
    schedule: dict[str, Any] | None = Field(default=None, description="`every` or `cron`, and the time zone.")
    last_run: Run | None = None
    next_run: AwareDatetime | None = Field(default=None, description="null: it is not scheduled.")


class Jobs(Answer):
    """All configured jobs, in cascade order."""

    jobs: list[Job]


class Statistics(Answer):
    """The totals of all replicas, kept for ever, under the names of the service that the agent replaced."""

    runs: int
    last_run: AwareDatetime | None
    orphan_apps_cleaned: int
    orphan_tasks_cleaned: int
    stuck_tasks_cleaned: int
    old_tasks_cleaned: int
    errors: int


class Status(Answer):
    """The service at a glance."""

    version: str
    agent: str = Field(description="The replica that answers.")
    now: AwareDatetime = Field(description="The time of the database server.")
    paused: bool = Field(description="Whether everything is paused.")
    jobs: list[Job]
    statistics: Statistics


class ConditionValue(Answer):
    """One condition of a rule, and what it says of the document."""

    name: str
    holds: bool
    values: dict[str, Any] = Field(default_factory=dict, description="The fields that it looks at.")


class ActionConditions(Answer):
    """The conditions under which an action is taken."""

    action: Action
    conditions: list[ConditionValue]


class ProofValue(Answer):
    """What a guard on the source of truth says now."""

    guard: Guard
    refusal: str | None = Field(description="null: it does not refuse.")


class Explanation(Answer):
    """Why a job would touch a document, or not."""

    job: str
    kind: str
    database: str
    collection: str
    id: Any = Field(description="The document's `_id`, in Extended JSON.")
    found: What | None = Field(description="What the job takes it for; null: for nothing.")
    action: Action | None = Field(description="What the job would do; null: nothing.")
    reason: str
    held_by: list[Hold] = Field(description="What would keep the job off it.")
    actions: list[ActionConditions]
    proofs: list[ProofValue]


class Held(Answer):
    """A document, and whether it is held."""

    database: str
    collection: str
    id: Any = Field(description="The document's `_id`, in Extended JSON.")
    held: bool


class Paused(Answer):
    """Whether a job, or everything, is paused now."""

    job: str | None = Field(description="null: everything.")
    paused: bool


class Reloaded(Answer):
    """What a reload did."""

    jobs: list[str] = Field(description="The jobs that are configured now.")
    needs_restart: list[str] = Field(default_factory=list, description="Changed sections that count after a restart.")
    warnings: list[str] = Field(default_factory=list)
