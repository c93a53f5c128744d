"""Time zones by name."""

from __future__ import annotations

import datetime as dt
import difflib
import zoneinfo


def zone(name: str) -> dt.tzinfo:
    """The time zone of that name. Raises ``ValueError`` with the nearest one that there is."""
    if name == "UTC":
        return dt.UTC  # needs no time zone database
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = _nearest(name)
        hint = f"; did you mean `{near}`?" if near else ""
        raise ValueError(f"give the name of a time zone such as UTC or Europe/Berlin{hint}") from None


def _nearest(name: str) -> str | None:
    known = zoneinfo.available_timezones() | {"UTC"}
    by_lower = {entry.lower(): entry for entry in sorted(known)}
    wanted = name.strip().replace(" ", "_").lower()
    by_city = {entry.rsplit("/", 1)[-1].lower(): entry for entry in sorted(known, reverse=True)}
    close = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.8)
    if wanted in by_lower or close:
        return by_lower.get(wanted) or by_lower[close[0]]
    return by_city.get(wanted)
