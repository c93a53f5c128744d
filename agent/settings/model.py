"""The sections of the configuration with their defaults, and the settings that ``load`` returns.

Every field's description is what the reference and the JSON schema say of it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializeAsAny,
    WithJsonSchema,
)

from agent.settings.cron import Cron
from agent.settings.secrets import without_password
from agent.settings.shapes import annotation_of
from agent.settings.values import Accepts, DatabaseName, Duration, Size
from agent.settings.zones import zone

J = TypeVar("J", bound=BaseModel)

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)

DEFAULT_JOBS: Mapping[str, Mapping[str, Any]] = {
    "orphan_apps": {"kind": "orphan_records"},
    "orphan_tasks": {"kind": "orphan_tasks"},
    "stuck_tasks": {"kind": "stuck_tasks"},
    "old_tasks": {"kind": "retention"},
    "orphan_operations": {
        "kind": "orphan_tasks",
        "enabled": False,
        "collection": "operations",
        "targets": "databases",
        "match": {"database_id": "_id"},
        "statuses": {
            "pending": "pending",
            "running": "in_progress",
            "completed": "completed",
            "failed": "failed",
            "cancelled": "cancelled",
        },
        "fields": {"started_at": None},
    },
    "allocations": {"kind": "allocation_audit", "enabled": False},
    "client_cache": {"kind": "client_eviction", "every": "5m"},
}
"""The jobs that run where the configuration lists none; a job says only what differs from the defaults of its kind."""


_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def _uri(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    scheme, found, rest = text.partition("://")
    if not found or scheme not in {"mongodb", "mongodb+srv"}:
        raise ValueError("must start with mongodb:// or mongodb+srv://")
    if not rest.rpartition("@")[2].partition("/")[0].partition("?")[0]:
        raise ValueError("names no host")
    if any(character.isspace() for character in text):
        raise ValueError("must not contain white space")
    return SecretStr(text)


def _zone_name(value: str) -> str:
    zone(value)
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _base_path(value: str) -> str:
    if value and not _BASE_PATH.fullmatch(value):
        raise ValueError(
            "give nothing, or a path that starts with a slash and does not end with one, such as /maintenance"
        )
    return value


def _cron(value: str) -> str:
    Cron.parse(value)
    return value


def _file(value: object) -> object:
    if value == "":
        raise ValueError("give the path of a file")  # the empty path would be the current directory
    return value


File = Annotated[Path, BeforeValidator(_file)]
Uri = Annotated[
    SecretStr,
    AfterValidator(_uri),
    WithJsonSchema({"type": "string", "pattern": r"^mongodb(\+srv)?://"}),
    Accepts("a MongoDB connection string"),
]
ZoneName = Annotated[str, AfterValidator(_zone_name), Accepts("the name of a time zone such as UTC or Europe/Berlin")]
CronText = Annotated[str, AfterValidator(_cron), Accepts("a crontab(5) expression such as 0 3 * * 0")]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
BasePath = Annotated[str, AfterValidator(_base_path), Accepts("a path such as /maintenance, or nothing")]


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Mongodb(Section):
    """The deployment that the agent works on and keeps its own collections in."""

    uri: Uri = Field(
        default=SecretStr("mongodb://localhost:27017"),
        description="Connection string; give it in `uri_file` where it holds a password.",
    )
    uri_file: File | None = Field(
        default=None, description="A file that holds the connection string, instead of `uri`."
    )
    database: DatabaseName = Field(
        default="app", description="The application's database; also that of the agent's own data."
    )


class Http(Section):
    """The page, the API, the metrics and the health checks."""

    host: str = Field(default="0.0.0.0", min_length=1, description="The address to listen on.")  # noqa: S104 - a sidecar is scraped from outside
    port: int = Field(default=9190, ge=1, le=65_535, description="The port to listen on.")
    tokens_file: File | None = Field(
        default=None, description="A file of `name:token` lines, one a user; without it the API answers 403."
    )
    base_path: BasePath = Field(default="", description="The path under which a proxy publishes the agent.")
    tls_cert: File | None = Field(
        default=None, description="A certificate chain in PEM form; with `tls_key` the port speaks TLS."
    )
    tls_key: File | None = Field(default=None, description="The certificate's private key in PEM form.")
    rate_limit: int = Field(
        default=60, ge=1, le=100_000, description="Changes (POST) a minute that one token may ask for."
    )


class Journal(Section):
    """The records of runs."""

    keep: Duration = Field(
        default=dt.timedelta(days=90), ge=MINUTE, description="How long the records of runs are kept."
    )


class Archive(Section):
    """The copies that make changes undoable."""

    enabled: bool = Field(default=True, description="Whether a copy is kept of what a run changes.")
    keep: Duration = Field(
        default=dt.timedelta(days=7),
        ge=MINUTE,
        description="How long the copies last, and with them the right to restore what a run changed.",
    )
    max_size: Size = Field(
        default=2 * 2**30, description="Bytes that the copies may take; a full archive refuses changes."
    )


class Schedule(Section):
    """When jobs run that say nothing else."""

    every: Duration = Field(
        default=dt.timedelta(hours=1), ge=SECOND, description="Interval of the passes, aligned to the Unix epoch."
    )
    jitter: Duration = Field(
        default=dt.timedelta(seconds=30),
        description="A random delay of up to this, drawn once a slot, so that replicas and agents spread;"
        " at most half of the shortest `every`.",
    )
    run_on_startup: bool = Field(default=True, description="Whether a pass runs when the agent starts.")
    timezone: ZoneName = Field(default="UTC", description="The time zone of `cron` expressions.")


class Defaults(Section):
    """What holds for every job that says nothing else."""

    enabled: bool = Field(default=True, description="Whether the schedule and `--all` include the job.")
    run_timeout: Duration = Field(
        default=dt.timedelta(minutes=10), ge=SECOND, description="A run ends after this long."
    )
    dry_run: bool = Field(default=False, description="Only look: nothing but apply and restore changes anything.")
    batch: int = Field(default=1000, ge=1, le=10_000, description="Documents changed in one batch.")


class Lease(Section):
    """The right of one replica to run a job."""

    ttl: Duration = Field(
        default=MINUTE, ge=SECOND, description="How long after its last sign of life a holder's lease lasts."
    )


class Throttle(Section):
    """How gentle the agent is with the database, between the reads and the batches of a run."""

    max_lag: Duration | None = Field(
        default=dt.timedelta(seconds=10),
        description="Wait while a secondary is behind by more than this; null: do not look. Needs `replSetGetStatus`.",
    )
    pace: float = Field(
        default=0.1, ge=0, le=100, description="The pause after a read or a batch, as a share of the time that it took."
    )


class Collections(Section):
    """The agent's own collections."""

    prefix: str = Field(
        default="maintenance_",
        pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}$",
        description="What the names of the agent's own collections start with.",
    )


class Log(Section):
    """The log on standard error."""

    level: Level = Field(default="INFO", description="INFO: a line a run; DEBUG: a line an item.")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else json."
    )


class Shutdown(Section):
    """How the agent ends."""

    budget: Duration = Field(
        default=dt.timedelta(seconds=25),
        ge=SECOND,
        description="How long a shutdown may take; less than the grace period of the orchestrator (30s in Kubernetes).",
    )


class Settings(Section, Generic[J]):
    """The whole configuration, checked and completed; ``jobs`` in the order in which they are listed."""

    mongodb: Mongodb = Field(default=Mongodb(), description="The MongoDB deployment.")
    http: Http = Field(default=Http(), description="The page, the API, the metrics and the health checks.")
    indexes: Literal["manage", "check"] = Field(
        default="manage",
        description="manage: create the indexes that the jobs need; check: only report those that are missing.",
    )
    journal: Journal = Field(default=Journal(), description="The records of runs.")
    archive: Archive = Field(default=Archive(), description="The copies that make changes undoable.")
    lease: Lease = Field(default=Lease(), description="The right of one replica to run a job.")
    throttle: Throttle = Field(default=Throttle(), description="How gentle the agent is with the database.")
    collections: Collections = Field(default=Collections(), description="The agent's own collections.")
    log: Log = Field(default=Log(), description="The log on standard error.")
    shutdown: Shutdown = Field(default=Shutdown(), description="How the agent ends.")
    schedule: Schedule = Field(default=Schedule(), description="When jobs run that say nothing else.")
    defaults: Defaults = Field(default=Defaults(), description="What holds for every job that says nothing else.")
    jobs: Mapping[str, SerializeAsAny[J]] = Field(
        default_factory=dict, description="The jobs, by name; replaces the built-in list."
    )
    schedule_enabled: bool = Field(
        default=True, exclude=True, description="False where MAINTENANCE_ENABLED stops the clock."
    )
    warnings: list[str] = Field(default_factory=list, exclude=True, description="What is odd, but not wrong.")

    def shown(self) -> dict[str, Any]:
        """The settings as plain JSON types; of secrets only the paths of their files, of the URI no password."""
        shown: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        shown["mongodb"]["uri"] = without_password(self.mongodb.uri.get_secret_value())
        return shown


SHARED: Mapping[str, Any] = {
    **{key: annotation_of(field) for key, field in Defaults.model_fields.items()},
    "every": annotation_of(Schedule.model_fields["every"]),
    "cron": CronText,
    "timezone": ZoneName,
    "database": DatabaseName,
    "targets_database": DatabaseName,
}
"""The types of the keys that a job has where it takes what a section has, or what every job may say."""

SECTIONS = tuple(name for name in Settings.model_fields if name not in {"jobs", "schedule_enabled", "warnings"})
