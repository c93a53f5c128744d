"""Writes the dashboards, and the manifest of the rules: ``python -m dashboards``.

What it writes is committed; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

from dashboards import agent, allocations, job, overview, rules
from dashboards.board import AGENT, ALLOCATIONS, JOB, OVERVIEW

FOLDER = Path(__file__).parent
BOARDS = {OVERVIEW: overview, JOB: job, ALLOCATIONS: allocations, AGENT: agent}


def files() -> dict[Path, str]:
    """What is written where."""
    made = {FOLDER / f"{uid}.json": module.board().json() for uid, module in BOARDS.items()}
    return {**made, rules.MANIFEST: rules.manifest()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(FOLDER.parent))
