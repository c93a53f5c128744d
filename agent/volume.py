"""Directories on a volume: whether they are there, read off the event loop, each parent once. Nothing is written.

"Could not look" is never "absent": an answer is one of present, absent, unreadable (a parent denies access), outside
(a symbolic link leads out of the root) and malformed (something else stands in its place); an I/O error or no answer in
time is ``VolumeError``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from agent.errors import VolumeError

Presence = Literal["present", "absent", "unreadable", "outside", "malformed"]
Parts = tuple[str, ...]
T = TypeVar("T")

NAMES_KEPT = 100_000  # directory names of the listings kept at a time: about 15 MB
WITNESSES = 8  # directories found, looked for again before every batch: an emptied volume has none of them
MARKER_BYTES = 4096
PATHS_A_CALL = 1000
BYTES_A_CHARACTER = 5  # at most: four in UTF-8, and a slash where each part is of one
PATH_BYTES = 4096  # with the byte that ends it; a longer path is none to any file system, whichever parents are missing


@dataclass(frozen=True, slots=True)
class Root:
    """What the root of a tree looked like: a problem, or which volume it is."""

    problem: str | None = None
    device: tuple[int, int] = (0, 0)
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class _Listing:
    directories: frozenset[str]
    others: dict[str, Literal["link", "other"]]

    def __len__(self) -> int:
        return len(self.directories) + len(self.others) + 1


class Volume:
    """One run's view of trees of directories: each directory is read once, and what was found is remembered."""

    def __init__(self, executor: Executor, *, seconds: float = 30.0) -> None:
        """``seconds`` bounds each look; the executor's threads are where a hanging file system hangs."""
        self._executor = executor
        self._seconds = seconds
        self._trees: dict[Path, _Tree] = {}
        self._roots: dict[Path, Root] = {}

    async def inspect(self, root: Path, marker: str | None) -> Root:
        """What the root looks like now. Raises ``VolumeError`` where it was another at the first look of the run."""
        state = await self._call(lambda: _inspect(root, marker))
        if state.problem is None and self._roots.setdefault(root, state) != state:
            raise VolumeError(f"{root} changed while it was looked at: it is another volume")
        return state

    async def look(self, root: Path, paths: Sequence[Parts]) -> list[Presence]:
        """Whether each path under ``root`` is a directory, from listings made once a run.

        Raises ``VolumeError`` where a directory could not be looked at.
        """
        tree = self._trees.setdefault(root, _Tree(root))
        return await self._call(lambda: [tree.presence(path) for path in paths])

    async def look_again(self, root: Path, marker: str | None, paths: Sequence[Parts]) -> list[bool]:
        """Whether each path is absent now, looked up one by one and afresh.

        Raises ``VolumeError`` where the root is no longer what it was at the first look of the run.
        """
        tree = self._trees.setdefault(root, _Tree(root))
        first = self._roots.get(root)

        def check() -> None:
            state = _inspect(root, marker)
            if state.problem or (first is not None and state != first):
                raise VolumeError(f"{root} changed while it was looked at: {state.problem or 'it is another volume'}")
            if tree.witnesses and all(_absent(root, path) for path in tree.witnesses):
                raise VolumeError(f"{root} changed while it was looked at: the directories found before are gone")

        def again() -> list[bool]:
            check()
            absent = [_absent(root, path) for path in paths]
            check()  # it may have gone away in between
            return absent

        return await self._call(again)

    async def _call(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                return await loop.run_in_executor(self._executor, work)
        except TimeoutError as error:
            raise VolumeError(f"the file system gave no answer within {self._seconds:g} s") from error


class _Tree:
    """The listings of one tree. Blocking; used by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._most_bytes = PATH_BYTES - len(os.fsencode(root)) - len("/") - 1
        self._listings: OrderedDict[Parts, _Listing | Presence] = OrderedDict()
        self._last: tuple[Parts | None, _Listing | Presence] = (None, "absent")
        self._names = 0
        self.witnesses: list[Parts] = []

    def presence(self, parts: Parts) -> Presence:
        """What stands at the path."""
        if sum(map(len, parts)) * BYTES_A_CHARACTER > self._most_bytes and self._is_too_long(parts):
            return "malformed"
        parent = self._listing(parts[:-1])
        if isinstance(parent, str):
            return parent
        presence = self._entry(parent, parts)
        if presence == "present" and len(self.witnesses) < WITNESSES:
            self.witnesses.append(parts)
        return presence

    def _is_too_long(self, parts: Parts) -> bool:
        return len(os.fsencode("/".join(parts))) > self._most_bytes

    def _entry(self, parent: _Listing, parts: Parts) -> Presence:
        name = parts[-1]
        if name in parent.directories:
            return "present"
        kind = parent.others.get(name)
        if kind == "link":
            return self._link(parts)
        if kind == "other":
            return "malformed"
        # A file system may know the name by another spelling (case, Unicode form): only its own answer counts.
        return _probe(self._root, parts)

    def _link(self, parts: Parts) -> Presence:
        """A link is followed only as far as the root reaches; one that leads nowhere leads out."""
        try:
            real = os.path.realpath(self._root.joinpath(*parts), strict=True)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EACCES}:
                return "outside"
            raise _failed(self._root.joinpath(*parts), error) from error
        root = os.path.realpath(self._root)
        inside = os.path.commonpath([real, root]) == root
        return "present" if inside and Path(real).is_dir() else "outside"

    def _listing(self, parts: Parts) -> _Listing | Presence:
        """The listing of a directory, or what stands in its place or in that of one of its parents."""
        if parts != self._last[0]:  # paths come in the order of their parents
            self._last = parts, self._read(parts)
        return self._last[1]

    def _read(self, parts: Parts) -> _Listing | Presence:
        if () not in self._listings:
            self._keep((), self._scan(()))
        known = next(depth for depth in range(len(parts), -1, -1) if parts[:depth] in self._listings)
        self._listings.move_to_end(parts[:known])
        found = self._listings[parts[:known]]
        for depth in range(known + 1, len(parts) + 1):
            if isinstance(found, str):
                break
            presence = self._entry(found, parts[:depth])
            found = self._scan(parts[:depth]) if presence == "present" else presence
            self._keep(parts[:depth], found)
        return found

    def _scan(self, parts: Parts) -> _Listing | Presence:
        path = self._root.joinpath(*parts)
        try:
            with os.scandir(path) as entries:
                return _sorted_out(entries)
        except FileNotFoundError:
            if not parts:
                raise VolumeError(f"{path} is gone") from None
            return "absent"
        except PermissionError as error:
            if not parts:
                raise _failed(path, error) from error
            return "unreadable"
        except NotADirectoryError:
            return "malformed"
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return "malformed"
            raise _failed(path, error) from error

    def _keep(self, parts: Parts, found: _Listing | Presence) -> None:
        self._listings[parts] = found
        self._names += len(found) if isinstance(found, _Listing) else 1
        while self._names > NAMES_KEPT and len(self._listings) > len(parts) + 1:
            _, oldest = self._listings.popitem(last=False)
            self._names -= len(oldest) if isinstance(oldest, _Listing) else 1


def _sorted_out(entries: Iterable[os.DirEntry[str]]) -> _Listing:
    directories: set[str] = set()
    others: dict[str, Literal["link", "other"]] = {}
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.add(entry.name)
        else:
            others[entry.name] = "link" if entry.is_symlink() else "other"
    return _Listing(frozenset(directories), others)


def _inspect(root: Path, marker: str | None) -> Root:
    try:
        state = root.stat()
        if not stat.S_ISDIR(state.st_mode):
            return Root(problem=f"{root} is not a directory")
        with os.scandir(root):
            pass
        content = _marker(root / marker) if marker else None
    except FileNotFoundError:
        return Root(problem=f"{root} does not exist")
    except NotADirectoryError:
        return Root(problem=f"{root} is not a directory")
    except PermissionError:
        return Root(problem=f"{root} may not be read")
    except OSError as error:
        raise _failed(root, error) from error
    return Root(device=(state.st_dev, state.st_ino), marker=content)


def _marker(path: Path) -> str | None:
    """The content of the marker file, which names the volume; ``None`` where there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(MARKER_BYTES).decode("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise _failed(path, error) from error


def _absent(root: Path, parts: Parts) -> bool:
    return _probe(root, parts) == "absent"


def _probe(root: Path, parts: Parts) -> Presence:
    """What stands at the path now, asked by its name: absent only where the file system says so itself."""
    path = root.joinpath(*parts)
    try:
        os.lstat(path)
    except FileNotFoundError:
        return "absent"
    except PermissionError:
        return "unreadable"
    except NotADirectoryError:
        return "malformed"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "outside"
        if error.errno == errno.ENAMETOOLONG:
            return "malformed"
        raise _failed(path, error) from error
    return "present"


def _failed(path: Path, error: OSError) -> VolumeError:
    return VolumeError(f"{path} could not be read: {error.strerror or error}")
