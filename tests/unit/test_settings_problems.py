"""What is wrong with a configuration, and the exact words for it: a case each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ConfigurationError
from agent.settings import Settings, load
from agent.settings.secrets import without_password
from tests.unit.settings_fake import KINDS, FakeJob


def cases(text: str) -> list[tuple[str, str]]:
    """Cases as they are read best: what is given, and indented below it what is said of it, joined to one line."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        above = "\n".join(line for line in lines if not line.startswith("  "))
        found.append((above, " ".join(line.strip() for line in lines if line.startswith("  "))))
    return found


def ids(found: list[tuple[str, str]]) -> list[str]:
    """The name of each case."""
    return [text[:70] for text, _ in found]


def load_text(tmp_path: Path, text: str | bytes | None, environ: Mapping[str, str] | None = None) -> Settings[FakeJob]:
    """Loads a file of the given text."""
    path = tmp_path / "f.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(KINDS, path=path if text is not None else None, environ=environ or {})


def problems_of(tmp_path: Path, text: str | bytes | None, environ: Mapping[str, str] | None = None) -> list[str]:
    """The problems of a file, which is called ``f.yaml`` in them."""
    with pytest.raises(ConfigurationError) as caught:
        load_text(tmp_path, text, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.replace(str(tmp_path / "f.yaml"), "f.yaml") for problem in caught.value.problems]


IN_SECTIONS = cases(r"""
htttp: {port: 1}
  htttp: unknown key; did you mean `http`?

job: {}
  job: unknown key; did you mean `jobs`?

http: {prot: 1}
  http.prot: unknown key (with the value 1); did you mean `port`?

http: {tls-key: x}
  http.tls-key: unknown key (with the value "x"); did you mean `tls_key`?

lease: {xyz: 1}
  lease.xyz: unknown key (with the value 1); known here: ttl

http: {password: hunter2}
  http.password: unknown key (with a value that is not shown); known here: host, port, tokens_file, base_path, tls_cert,
  tls_key, rate_limit

schedule_enabled: false
  schedule_enabled: unknown key (with the value false); did you mean `schedule`?

backup: {}
  backup: unknown key; known here: mongodb, http, indexes, journal, archive, lease, throttle, collections, log, shutdown,
  schedule, defaults, jobs

http: null
  http: null is not accepted; give a mapping with the keys host, port, tokens_file, base_path, tls_cert, tls_key,
  rate_limit

journal: 90d
  journal: "90d" is not accepted; give a mapping with the keys keep

http: {port: 0}
  http.port: 0 is not accepted; give a whole number from 1 to 65535

http: {port: 65536}
  http.port: 65536 is not accepted; give a whole number from 1 to 65535

http: {port: http}
  http.port: "http" is not accepted; give a whole number from 1 to 65535

http: {port: 80.5}
  http.port: 80.5 is not accepted; give a whole number from 1 to 65535

http: {port: true}
  http.port: true is not accepted; give a whole number from 1 to 65535

http: {port: null}
  http.port: null is not accepted; give a whole number from 1 to 65535

http: {port: [80]}
  http.port: [80] is not accepted; give a whole number from 1 to 65535

http: {port: 2026-01-31}
  http.port: "2026-01-31" is not accepted; give a whole number from 1 to 65535

http: {rate_limit: 0}
  http.rate_limit: 0 is not accepted; give a whole number from 1 to 100000

defaults: {batch: 10001}
  defaults.batch: 10001 is not accepted; give a whole number from 1 to 10000

journal: {keep: 90}
  journal.keep: 90 is not accepted; a number alone has no unit: write 90s

journal: {keep: '90'}
  journal.keep: "90" is not accepted; a number alone has no unit: write 90s

journal: {keep: 1:30}
  journal.keep: "1:30" is not accepted; give a duration such as 90s, 15m, 1h30m or 30d

journal: {keep: 90 days}
  journal.keep: "90 days" is not accepted; give a duration such as 90s, 15m, 1h30m or 30d

journal: {keep: -1d}
  journal.keep: "-1d" is not accepted; a duration is never negative

journal: {keep: 59s}
  journal.keep: "59s" is not accepted; give a duration such as 90s, 15m, 1h30m or 30d, at least 1m

journal: {keep: 200000d}
  journal.keep: "200000d" is not accepted; give no more than 36500d

schedule: {every: 0}
  schedule.every: 0 is not accepted; give a duration such as 90s, 15m, 1h30m or 30d, at least 1s

schedule: {every: 999ms}
  schedule.every: "999ms" is not accepted; give a duration such as 90s, 15m, 1h30m or 30d, at least 1s

schedule: {every: null}
  schedule.every: null is not accepted; give a duration such as 90s, 15m, 1h30m or 30d

schedule: {jitter: 151s}
  schedule.jitter: "151s" is not accepted; give at most 2m30s, half of the 5m at which `client_cache` runs

{schedule: {jitter: 1m}, jobs: {a: {kind: retention, every: 1m}, b: {kind: retention, cron: "* * * * *"}}}
  schedule.jitter: "1m" is not accepted; give at most 30s, half of the 1m at which `a` runs

archive: {max_size: 2G}
  archive.max_size: "2G" is not accepted; give a size such as 500MB or 2GiB

archive: {max_size: 0}
  archive.max_size: 0 is not accepted; give a size such as 500MB or 2GiB, from 1B to 1048576TiB

archive: {enabled: maybe}
  archive.enabled: "maybe" is not accepted; give true or false

archive: {enabled: 2}
  archive.enabled: 2 is not accepted; give true or false

archive: {enabled: null}
  archive.enabled: null is not accepted; give true or false

indexes: create
  indexes: "create" is not accepted; give one of `manage`, `check`

indexes: {}
  indexes: {} is not accepted; give one of `manage`, `check`

log: {level: loud}
  log.level: "loud" is not accepted; give one of `DEBUG`, `INFO`, `WARNING`, `ERROR`

log: {format: xml}
  log.format: "xml" is not accepted; give one of `auto`, `json`, `console`

mongodb: {database: 123}
  mongodb.database: 123 is not accepted; give the name of a database: write "123" in quotes

mongodb: {database: 1e3}
  mongodb.database: 1000.0 is not accepted; give the name of a database: write "1e3" in quotes

mongodb: {database: true}
  mongodb.database: true is not accepted; give the name of a database: write "true" in quotes

mongodb: {database: 2026-01-31}
  mongodb.database: "2026-01-31" is not accepted; give the name of a database: write "2026-01-31" in quotes

mongodb: {database: a b}
  mongodb.database: "a b" is not accepted; give the name of a database: 1 to 63 characters, none of / \ . " $ * < >
  : | ? or a space

mongodb: {database: ''}
  mongodb.database: "" is not accepted; give the name of a database: 1 to 63 characters, none of / \ . " $ * < > : |
  ? or a space

http: {host: ''}
  http.host: "" is not accepted; give a string, not empty

http: {tokens_file: 5}
  http.tokens_file: 5 is not accepted; give a path or null: write "5" in quotes

http: {base_path: x/}
  http.base_path: "x/" is not accepted; give nothing, or a path that starts with a slash and does not end with one,
  such as /maintenance

http: {tls_cert: /c}
  http.tls_cert: needs `tls_key` too: a certificate and its key are given together

http: {tls_key: /k}
  http.tls_key: needs `tls_cert` too: a certificate and its key are given together

collections: {prefix: $x}
  collections.prefix: "$x" is not accepted; give a string that matches ^[A-Za-z_][A-Za-z0-9_.-]{0,99}$

schedule: {timezone: europe/berlin}
  schedule.timezone: "europe/berlin" is not accepted; give the name of a time zone such as UTC or Europe/Berlin; did
  you mean `Europe/Berlin`?

http: {port: "a\nb\u2028c"}
  http.port: "a\nb\u2028c" is not accepted; give a whole number from 1 to 65535

mongodb: {uri: mysql://bob:hunter2@db/x}
  mongodb.uri: "mysql://bob:***@db/x" is not accepted; must start with mongodb:// or mongodb+srv://

mongodb: {uri: hunter2}
  mongodb.uri: (hidden) is not accepted; must start with mongodb:// or mongodb+srv://

mongodb: {uri: 'mongodb://bob:hunter2@/x'}
  mongodb.uri: "mongodb://bob:***@/x" is not accepted; names no host

mongodb: {uri: 'mongodb://a b'}
  mongodb.uri: "mongodb://a b" is not accepted; must not contain white space

mongodb: {uri: 5}
  mongodb.uri: (hidden) is not accepted; give a MongoDB connection string

mongodb: mongodb://bob:hunter2@db
  mongodb: "mongodb://bob:***@db" is not accepted; give a mapping with the keys uri, uri_file, database

mongodb: {uri: 'mongodb://a', uri_file: /x}
  mongodb.uri: give either `uri` or `uri_file`, not both

mongodb: {uri_file: ''}
  mongodb.uri_file: "" is not accepted; give the path of a file

mongodb: {uri_file: /nowhere}
  mongodb.uri_file: "/nowhere" is not accepted; there is no such file

mongodb: {uri_file: /}
  mongodb.uri_file: "/" is not accepted; the file cannot be read: Is a directory
""")


@pytest.mark.parametrize("text, problem", IN_SECTIONS, ids=ids(IN_SECTIONS))
def test_a_problem_of_a_section(tmp_path: Path, text: str, problem: str) -> None:
    """The path, the value, what is accepted, and where it stands."""
    assert problems_of(tmp_path, f"\n{text}")[0] == f"{problem} (f.yaml, line 2)"


IN_JOBS = cases(r"""
null
  jobs: null is not accepted; give a mapping of jobs by name; {} for none, no key at all for the built-in ones

[a]
  jobs: ["a"] is not accepted; give a mapping of jobs by name; {} for none, no key at all for the built-in ones

{A b: {kind: retention}}
  jobs.A b: a job's name is made of small letters, digits, `_` and `-`

{'': {kind: retention}}
  jobs.: a job's name is made of small letters, digits, `_` and `-`

{a-b: {kind: retention}, a_b: {kind: retention}}
  jobs.a_b: has the same name as `a-b` in the environment (MAINTENANCE_JOBS__A_B); rename one

{x: null}
  jobs.x: null is not accepted; give a mapping with the key kind, one of `orphan_records`, `stuck_tasks`,
  `retention`, `client_eviction`

{x: retention}
  jobs.x: "retention" is not accepted; give a mapping with the key kind, one of `orphan_records`, `stuck_tasks`,
  `retention`, `client_eviction`

{x: {}}
  jobs.x.kind: missing; give one of `orphan_records`, `stuck_tasks`, `retention`, `client_eviction`

{x: {kind: null}}
  jobs.x.kind: missing; give one of `orphan_records`, `stuck_tasks`, `retention`, `client_eviction`

{old_tasks: {keep: 5d}}
  jobs.old_tasks.kind: missing; give one of `orphan_records`, `stuck_tasks`, `retention`, `client_eviction`; the
  built-in job of this name is of the kind `retention`

{x: {kind: retentoin}}
  jobs.x.kind: "retentoin" is not accepted; give one of `orphan_records`, `stuck_tasks`, `retention`,
  `client_eviction`; did you mean `retention`?

{x: {kind: allocation_audit}}
  jobs.x.kind: "allocation_audit" is not accepted; give one of `orphan_records`, `stuck_tasks`, `retention`,
  `client_eviction`

{x: {kind: 5}}
  jobs.x.kind: 5 is not accepted; give one of `orphan_records`, `stuck_tasks`, `retention`, `client_eviction`

{x: {kind: [retention]}}
  jobs.x.kind: ["retention"] is not accepted; give one of `orphan_records`, `stuck_tasks`, `retention`,
  `client_eviction`

{x: {kind: retention, kep: 5d}}
  jobs.x.kep: unknown key (with the value "5d"); did you mean `keep`?

{x: {kind: retention, zzz: 1}}
  jobs.x.zzz: unknown key (with the value 1); known here: kind, enabled, run_timeout, dry_run, batch, every, cron,
  timezone, run_on_startup, where, database, limit, keep

{x: {kind: retention, name: y}}
  jobs.x.name: unknown key (with the value "y"); known here: kind, enabled, run_timeout, dry_run, batch, every,
  cron, timezone, run_on_startup, where, database, limit, keep

{x: {kind: retention, limit: {item: 5}}}
  jobs.x.limit.item: unknown key (with the value 5); did you mean `items`?

{x: {kind: orphan_records, fields_: {}}}
  jobs.x.fields_: unknown key; did you mean `fields`?

{x: {kind: orphan_records, fields: {statu: s}}}
  jobs.x.fields.statu: unknown key (with the value "s"); did you mean `status`?

{x: {kind: retention, keep: {dome: 5d}}}
  jobs.x.keep.dome: unknown key (with the value "5d"); did you mean `done`?

{x: {kind: retention, enabled: null}}
  jobs.x.enabled: null is not accepted; give true or false

{x: {kind: retention, run_timeout: 0s}}
  jobs.x.run_timeout: "0s" is not accepted; give a duration such as 90s, 15m, 1h30m or 30d, at least 1s

{x: {kind: retention, batch: 0}}
  jobs.x.batch: 0 is not accepted; give a whole number from 1 to 10000

{x: {kind: retention, batch: true}}
  jobs.x.batch: true is not accepted; give a whole number from 1 to 10000

{x: {kind: retention, every: 500ms}}
  jobs.x.every: "500ms" is not accepted; give a duration such as 90s, 15m, 1h30m or 30d, at least 1s

{x: {kind: retention, database: a/b}}
  jobs.x.database: "a/b" is not accepted; give the name of a database: 1 to 63 characters, none of / \ . " $ * < > :
  | ? or a space

{x: {kind: retention, timezone: Mars}}
  jobs.x.timezone: "Mars" is not accepted; give the name of a time zone such as UTC or Europe/Berlin

{x: {kind: retention, cron: '61 * * * *'}}
  jobs.x.cron: "61 * * * *" is not accepted; minute: 61 is not from 0 to 59

{x: {kind: retention, cron: 5}}
  jobs.x.cron: 5 is not accepted; give a crontab(5) expression such as 0 3 * * 0: write "5" in quotes

{x: {kind: retention, every: 5m, cron: '@daily'}}
  jobs.x.every: give either `every` or `cron`, not both

{x: {kind: retention, keep: 30}}
  jobs.x.keep: 30 is not accepted; a number alone has no unit: write 30s

{x: {kind: retention, keep: {done: 30}}}
  jobs.x.keep.done: 30 is not accepted; a number alone has no unit: write 30s

{x: {kind: retention, keep: {}}}
  jobs.x: `keep` names no status

{x: {kind: orphan_records, root: 5}}
  jobs.x.root: 5 is not accepted; give a path: write "5" in quotes

{x: {kind: orphan_records, match: {a: 8.5}}}
  jobs.x.match.a: 8.5 is not accepted; give a string: write "8.5" in quotes

{x: {kind: orphan_records, match: x}}
  jobs.x.match: "x" is not accepted; give a mapping, each value a string

{x: {kind: orphan_records, never: [a, 5]}}
  jobs.x.never[1]: 5 is not accepted; give a string: write "5" in quotes

{x: {kind: orphan_records, never: a}}
  jobs.x.never: "a" is not accepted; give a list, each entry a string

{x: {kind: orphan_records, where: [1]}}
  jobs.x.where: [1] is not accepted; give a MongoDB filter: a mapping, or Extended JSON text

{x: {kind: orphan_records, where: {a: {$where: 1}}}}
  jobs.x.where: {"a": {"$where": 1}} is not accepted; $where cannot stand in a filter here

{x: {kind: orphan_records, limit: {fraction: 1.5}}}
  jobs.x.limit.fraction: 1.5 is not accepted; give a number from 0 to 1

{x: {kind: orphan_records, limit: {fraction: true}}}
  jobs.x.limit.fraction: true is not accepted; give a number from 0 to 1

{x: {kind: orphan_records, limit: {fraction: .nan}}}
  jobs.x.limit.fraction: NaN is not accepted; give a number from 0 to 1

{x: {kind: orphan_records, limit: {items: -1}}}
  jobs.x.limit.items: -1 is not accepted; give a whole number, at least 0
""")


@pytest.mark.parametrize("text, problem", IN_JOBS, ids=ids(IN_JOBS))
def test_a_problem_of_a_job(tmp_path: Path, text: str, problem: str) -> None:
    """The same, for what the kinds say."""
    assert problems_of(tmp_path, f"\n\njobs: {text}") == [f"{problem} (f.yaml, line 3)"]


def test_text_that_only_looks_like_a_number_needs_no_quotes(tmp_path: Path) -> None:
    """Nobody writes a number with a zero in front."""
    jobs: Any = load_text(tmp_path, "jobs: {x: {kind: orphan_records, match: {a: 08.5, b: 007, c: 1:30}}}").jobs
    assert jobs["x"].match == {"a": "08.5", "b": "007", "c": "1:30"}


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    """At eighty characters."""
    problems = problems_of(tmp_path, f"http: {{host: [{'x' * 200}]}}")
    assert problems == [f'http.host: ["{"x" * 77}… is not accepted; give a string, not empty (f.yaml, line 1)']


IN_FILES = cases(r"""
# nothing yet
  f.yaml: the file is empty; write {} to run on the defaults

[1]
  f.yaml: [1] is not accepted; give a mapping, such as http: {port: 9190}

http
  f.yaml: "http" is not accepted; give a mapping, such as http: {port: 9190}

mongodb://bob:hunter2@db
  f.yaml: "mongodb://bob:***@db" is not accepted; give a mapping, such as http: {port: 9190}

http: {port: 1
  f.yaml, line 1, column 15: not YAML: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'

http: {port: 1}
http: {port: 2}
  http: stands twice (f.yaml, lines 1 and 2)
""")


@pytest.mark.parametrize("text, problem", IN_FILES, ids=ids(IN_FILES))
def test_a_file_that_says_nothing_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    """Rather than a reason to run on the defaults."""
    assert problems_of(tmp_path, text) == [problem]


def test_a_file_that_cannot_be_text_is_a_problem(tmp_path: Path) -> None:
    """Nothing at all, bytes, and far too much."""
    assert problems_of(tmp_path, "") == ["f.yaml: the file is empty; write {} to run on the defaults"]
    assert problems_of(tmp_path, b"\xff\xfe") == ["f.yaml: not UTF-8: byte 1 is not text"]
    assert problems_of(tmp_path, "x" * (2**20 + 1)) == ["f.yaml: the file is larger than 1024 KiB"]


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Some editors write one."""
    assert load_text(tmp_path, b"\xef\xbb\xbfhttp: {port: 5}").http.port == 5


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    """It was asked for by name."""
    with pytest.raises(ConfigurationError) as caught:
        load(KINDS, path=tmp_path / "none.yaml", environ={})
    assert caught.value.problems == [f"{tmp_path}/none.yaml: there is no such file"]
    with pytest.raises(ConfigurationError) as caught:
        load(KINDS, path=tmp_path, environ={})
    assert caught.value.problems == [f"{tmp_path}: the file cannot be read: Is a directory"]


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "{file}: the file is empty"),
        (b" \n", "{file}: the file is empty"),
        (b"\xff", "{file}: the file is not text"),
        (b"x" * 70_000, "{file}: the file is larger than 64 KiB"),
    ],
    ids=["empty", "blank", "binary", "large"],
)
def test_a_secret_file_that_holds_no_uri_is_a_problem(tmp_path: Path, content: bytes, problem: str) -> None:
    """With its path, never with what is in it."""
    secret = tmp_path / "uri"
    secret.write_bytes(content)
    reason = problem.removeprefix("{file}: ")
    assert problems_of(tmp_path, None, {"MAINTENANCE_MONGODB__URI_FILE": str(secret)}) == [
        f'mongodb.uri_file: "{secret}" is not accepted; {reason} (MAINTENANCE_MONGODB__URI_FILE)'
    ]


def test_a_secret_file_with_another_secret_does_not_show_it(tmp_path: Path) -> None:
    """Somebody mounted the password alone."""
    secret = tmp_path / "uri"
    secret.write_text("hunter2\n", encoding="utf-8")
    assert problems_of(tmp_path, f"mongodb: {{uri_file: {secret}}}") == [
        f"mongodb.uri: (hidden) is not accepted; must start with mongodb:// or mongodb+srv:// ({secret})"
    ]


IN_ENVIRONMENT = cases(r"""
MAINTENANCE_HTTP__PORT=http
  http.port: "http" is not accepted; give a whole number from 1 to 65535 (MAINTENANCE_HTTP__PORT)

MAINTENANCE_HTTP__PORT=
  http.port: "" is not accepted; give a whole number from 1 to 65535 (MAINTENANCE_HTTP__PORT)

MAINTENANCE_JOURNAL__KEEP=90
  journal.keep: "90" is not accepted; a number alone has no unit: write 90s (MAINTENANCE_JOURNAL__KEEP)

MAINTENANCE_HTTP=[1
  MAINTENANCE_HTTP, line 1, column 3: not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream
  end>'

MAINTENANCE_HTTP={prot: 1}
  http.prot: unknown key (with the value 1); did you mean `port`? (MAINTENANCE_HTTP)

MAINTENANCE_JOBS=5
  jobs: 5 is not accepted; give a mapping of jobs by name; {} for none, no key at all for the built-in ones
  (MAINTENANCE_JOBS)

MAINTENANCE_JOBS__OLD_TASKS__EVERY=5m
MAINTENANCE_JOBS__OLD_TASKS__CRON=@daily
  jobs.old_tasks.every: give either `every` or `cron`, not both (MAINTENANCE_JOBS__OLD_TASKS__EVERY)

MAINTENANCE_MONGODB__URI=mongodb://a
MAINTENANCE_MONGODB__URI_FILE=/dev/null
  mongodb.uri: give either `uri` or `uri_file`, not both (MAINTENANCE_MONGODB__URI)

MAINTENANCE_ENABLED=never
  MAINTENANCE_ENABLED: "never" is not accepted; give true or false

MAINTENANCE_DRY_RUN=
  MAINTENANCE_DRY_RUN: "" is not accepted; give true or false

MAINTENANCE_INTERVAL_SECONDS=1h
  MAINTENANCE_INTERVAL_SECONDS: "1h" is not accepted; give a whole number of seconds from 1 to 3153600000

MAINTENANCE_INTERVAL_SECONDS=0
  MAINTENANCE_INTERVAL_SECONDS: "0" is not accepted; give a whole number of seconds from 1 to 3153600000

MAINTENANCE_TASK_RETENTION_DAYS=-1
  MAINTENANCE_TASK_RETENTION_DAYS: "-1" is not accepted; give a whole number of days from 1 to 36500

MAINTENANCE_TASK_RETENTION_DAYS=36501
  MAINTENANCE_TASK_RETENTION_DAYS: "36501" is not accepted; give a whole number of days from 1 to 36500

MAINTENANCE_STUCK_TASK_TIMEOUT_MINUTES=1.5
  MAINTENANCE_STUCK_TASK_TIMEOUT_MINUTES: "1.5" is not accepted; give a whole number of minutes from 1 to 52560000
""")


@pytest.mark.parametrize("text, problem", IN_ENVIRONMENT, ids=ids(IN_ENVIRONMENT))
def test_a_problem_of_the_environment_names_the_variable(tmp_path: Path, text: str, problem: str) -> None:
    """Where a reader would look first."""
    environ = dict(line.split("=", 1) for line in text.splitlines())
    assert problems_of(tmp_path, None, environ)[0] == problem


def test_the_command_line_is_named_too(tmp_path: Path) -> None:
    """And a job that is not there cannot be adjusted."""
    del tmp_path
    with pytest.raises(ConfigurationError) as caught:
        load(KINDS, path=None, environ={}, overrides={"http": {"port": "x"}, "jobs": {"old_task": {"keep": "1d"}}})
    assert caught.value.problems == [
        "jobs.old_task: there is no such job; did you mean `old_tasks`? (command line)",
        'http.port: "x" is not accepted; give a whole number from 1 to 65535 (command line)',
    ]


def test_a_later_layer_may_break_what_an_earlier_one_built(tmp_path: Path) -> None:
    """A mapping that is no mapping any more is a problem, not a crash."""
    text = "mongodb: {uri: 'mongodb://a'}\njobs: {a: {kind: retention, every: 5m}}"
    whole, job = problems_of(tmp_path, text, {"MAINTENANCE_MONGODB": "5", "MAINTENANCE_JOBS__A": "5"})
    assert whole.startswith("mongodb: 5 is not accepted; give a mapping with the keys uri, uri_file, database (")
    assert job.startswith("jobs.a: 5 is not accepted; give a mapping with the key kind, one of ")


def test_a_problem_of_a_later_layer_hides_the_value_that_it_replaces(tmp_path: Path) -> None:
    """What the file said does not matter then."""
    assert load_text(tmp_path, "http: {port: x}", {"MAINTENANCE_HTTP__PORT": "5"}).http.port == 5


@pytest.mark.parametrize(
    "uri, shown",
    [
        ("mongodb://localhost", "mongodb://localhost"),
        ("mongodb://bob@h/db", "mongodb://bob@h/db"),
        ("mongodb://bob:hunter2@h1,h2/db?w=1", "mongodb://bob:***@h1,h2/db?w=1"),
        ("mongodb+srv://bob:hun/t@er2@h", "mongodb+srv://bob:***@h"),
        ("mongodb://bob:@h", "mongodb://bob:***@h"),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2&w=1",
            "mongodb://h/?authMechanismProperties=***&w=1",
        ),
        ("bob:hunter2@h", "(hidden)"),
        ("hunter2", "(hidden)"),
        ("", "(hidden)"),
    ],
)
def test_a_uri_is_shown_without_its_password(uri: str, shown: str) -> None:
    """What does not look like a URI is not shown at all."""
    assert without_password(uri) == shown


@settings(max_examples=30, deadline=None)
@given(
    password=st.text(min_size=6).filter(lambda text: "\0" not in text), scheme=st.sampled_from(["mongodb", "http", "x"])
)
def test_a_password_is_in_no_problem(password: str, scheme: str) -> None:
    """Whatever characters it is made of."""
    secret = f"hunter2{password}"
    uri = f"{scheme}://bob:{secret}@host"
    assert "hunter2" not in without_password(uri)
    for overrides in ({"mongodb": {"uri": uri}, "http": {"port": "x"}}, {"mongodb": uri}, {"mongodb": {"uris": [uri]}}):
        with pytest.raises(ConfigurationError) as caught:
            load(KINDS, path=None, environ={}, overrides=overrides)
        assert "hunter2" not in str(caught.value)
        assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)


SECTION_KEYS = ["mongodb", "http", "jobs", "schedule", "defaults", "uri", "uri_file", "database", "port", "timezone"]
JOB_KEYS = ["a", "name", "kind", "keep", "every", "cron", "limit", "where", "match", "fields"]
KEYS = st.sampled_from([*SECTION_KEYS, *JOB_KEYS])
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["retention", "orphan_records", "5m", "x", "", "UTC", "* * * * *", None, True, False]),
    st.integers(),
    st.floats(),
    st.dates(),
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


@settings(max_examples=60, deadline=None)
@given(TREES, st.dictionaries(KEYS.map(lambda key: f"MAINTENANCE_{key.upper()}"), st.text(), max_size=3))
def test_any_document_is_a_configuration_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, environ: dict[str, str]
) -> None:
    """Never another exception, and one line a problem."""
    path = tmp_path_factory.mktemp("any") / "f.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    problems: list[str] = []
    try:
        load(KINDS, path=path, environ=environ)
    except ConfigurationError as error:
        problems = error.problems
    assert len(set(problems)) == len(problems)
    assert all(len(problem.splitlines()) == 1 for problem in problems)
