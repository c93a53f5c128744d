"""Bearer tokens: a file of ``name:token`` lines, read again when it changes.

The name says who asked for a change and stands in the run's record; the token is never shown. Only digests are kept in
memory. A line that is not understood gives nobody access and is named by its number; a file that cannot be read gives
nobody access at all, since a token that was taken away must not live on in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent import log

LOOK_EVERY_SECONDS: Final = 1.0
LOOK_PATIENCE_SECONDS: Final = 1.0  # a volume that does not answer must not hold up requests
FIRST_LOOK_SECONDS: Final = 10.0
SHORT: Final = 16  # characters; a shorter token can be guessed
MAX_BYTES: Final = 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_log = log.get_logger(__name__)

Identity = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a file by name, as digests, and what is wrong with the file."""

    digests: dict[str, bytes] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def name_of(self, token: str) -> str | None:
        """Whose token it is. Every token is compared, each in constant time, whatever the earlier ones said."""
        given = _digest(token)
        found: str | None = None
        for name, digest in self.digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def parse(text: str) -> Tokens:
    """Reads ``name:token`` lines; blank ones and those that begin with ``#`` are passed over."""
    digests: dict[str, bytes] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        name, colon, token = (part.strip() for part in entry.partition(":"))
        problem = _problem(name, colon, token, digests)
        if problem:
            problems.append(f"line {number}: {problem}")
            continue
        if len(token) < SHORT:
            warnings.append(f"line {number}: the token has fewer than {SHORT} characters")
        digests[name] = _digest(token)
    return Tokens(digests, tuple(problems), tuple(warnings))


def _problem(name: str, colon: str, token: str, digests: dict[str, bytes]) -> str | None:
    """What is wrong with a line; never what it says, since that may be a token in the wrong place."""
    if not colon:
        return "expected name:token"
    if not _NAME.fullmatch(name):
        return "the name before the colon takes 1 to 64 letters, digits, `.`, `_`, `@` and `-`"
    if not token or any(character.isspace() for character in token):
        return "the token after the colon is empty or holds white space"
    if name in digests:
        return "the name stands on an earlier line too"
    if _digest(token) in digests.values():
        return "the token stands on an earlier line too"
    return None


def _digest(token: str) -> bytes:
    """A digest: equal in length for all, so that a comparison tells nothing. Takes bytes that are no UTF-8 too."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class TokenFile:
    """The tokens of a file, or of none; ``current`` looks whether the file changed, once a second at most."""

    def __init__(self, path: Path | None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Reads nothing yet."""
        self.path = path
        self._monotonic = monotonic
        self._tokens = Tokens()
        self._identity: Identity | None = (0, 0, 0)  # no file's, and not that of a missing one
        self._looked_at = float("-inf")
        self._look: asyncio.Future[None] | None = None

    def load(self) -> Tokens:
        """Reads the file now (at start, before there is a loop). What is wrong stands in ``problems``."""
        if self.path is not None:
            self._read(self.path)
        return self._tokens

    async def current(self) -> Tokens:
        """The tokens that count now. The file is looked at off the event loop, one look at a time."""
        if self.path is None:
            return Tokens()
        if self._monotonic() - self._looked_at >= LOOK_EVERY_SECONDS:
            if self._look is None or self._look.done():
                self._look = asyncio.ensure_future(asyncio.to_thread(self._look_at, self.path))
            # Before the first look nobody has access, so that one is worth waiting for.
            first = self._looked_at == float("-inf")
            await asyncio.wait({self._look}, timeout=FIRST_LOOK_SECONDS if first else LOOK_PATIENCE_SECONDS)
            self._looked_at = self._monotonic()
        return self._tokens

    def _look_at(self, path: Path) -> None:
        if _identity(path) != self._identity:
            self._read(path)
            _tell(path, self._tokens)

    def _read(self, path: Path) -> None:
        identity = _identity(path)  # before the content: a change between the two is seen at the next look
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._tokens = Tokens(problems=(f"the file cannot be read ({error.strerror})",))
        else:
            large = len(content) > MAX_BYTES
            text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
            self._tokens = Tokens(problems=("the file is larger than 1 MiB",)) if large else parse(text)
        self._identity = identity


def _identity(path: Path) -> Identity | None:
    """What changes when the file, its mode or a link to it does; nothing where it cannot be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_ino, stat.st_size


def _tell(path: Path, tokens: Tokens) -> None:
    _log.info("the tokens file was read again", tokens_file=str(path), names_count=len(tokens.digests))
    for problem in tokens.problems:
        _log.error("a problem in the tokens file", tokens_file=str(path), problem=problem)
    for warning in tokens.warnings:
        _log.warning("a weak token in the tokens file", tokens_file=str(path), problem=warning)
