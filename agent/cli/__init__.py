"""The command line: what an operator types, in the same words as the HTTP interface and the page.

Here belongs what turns words into calls, answers into text, and both into an exit code. Not here: what is done, which
is ``agent.operations``, ``agent.app``, ``agent.check`` and ``agent.demo``. ``arguments`` says what may be typed, one
file a group of commands does it, ``output`` shows it, ``process`` knows about signals and how a process ends, ``edge``
holds it together.
"""

from __future__ import annotations

from collections.abc import Sequence

INTERRUPTED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code. Without ``arguments`` it is the command of this process, which ends."""
    try:
        # Here, since loading all parts takes a second, in which Ctrl-C must not show where it came in between.
        from agent.cli.edge import run  # noqa: PLC0415

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
