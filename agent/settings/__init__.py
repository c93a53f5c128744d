"""The configuration: what may be said, where it is read from, and what is told of it.

Here belong the types of settings (durations, sizes, filters, cron expressions), the sections with their defaults, and
``load``, which lays file, environment and command line over each other and refuses what is wrong, all at once. Not
here: the kinds of jobs, which bring their own keys (they are handed to ``load``), and whatever acts on a setting.
"""

from agent.settings.cron import Cron
from agent.settings.loading import load
from agent.settings.model import DEFAULT_JOBS, Settings
from agent.settings.reference import reference
from agent.settings.schema import schema, schema_text
from agent.settings.values import (
    Accepts,
    DatabaseName,
    Duration,
    Filter,
    JobName,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from agent.settings.zones import zone

__all__ = [
    "DEFAULT_JOBS",
    "Accepts",
    "Cron",
    "DatabaseName",
    "Duration",
    "Filter",
    "JobName",
    "Settings",
    "Size",
    "format_duration",
    "format_size",
    "load",
    "parse_duration",
    "parse_size",
    "reference",
    "schema",
    "schema_text",
    "zone",
]
