"""What a copy needs of a document."""

from __future__ import annotations

import pytest

from agent.archive import copied_fields
from agent.job import Change, Item

PLAIN = Item(1, "stuck", "failed", "")


@pytest.mark.parametrize(
    "change, items, fields",
    [
        (Change({}, None), [PLAIN], None),
        (Change({}, {"status": "FAILED", "error": "why"}), [PLAIN], ["_id", "error", "status"]),
        (Change({}, {"state.status": "FAILED", "state.error.text": "why"}), [PLAIN], ["_id", "state"]),
        (Change({}, {}, counter="meta.version"), [PLAIN], ["_id", "meta"]),
        (
            Change({}, {"status": "FAILED"}),
            [PLAIN, Item(2, "drift", "repaired", "", values={"booked.cpu": 1}), Item(3, "drift", "repaired", "")],
            ["_id", "booked", "status"],
        ),
        (Change({}, {"_id.odd": 1, "status": "FAILED"}), [PLAIN], ["_id", "status"]),
    ],
    ids=["deletion", "fields", "paths", "counter", "own values", "part of the id"],
)
def test_an_update_needs_the_outermost_fields_that_it_touches_and_a_deletion_everything(
    change: Change, items: list[Item], fields: list[str] | None
) -> None:
    """A field that holds another one is read whole, so that what was there is seen as it was."""
    assert copied_fields(change, items) == fields
