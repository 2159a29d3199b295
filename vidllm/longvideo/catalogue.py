"""What a library knows of its videos: one SQLite file beside the indexes.

Every change is one transaction, and every use opens the file anew, so that several processes may
work in one folder. Loads no model.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vidllm.errors import InputError, WorkError
from vidllm.errors.disk import unwritten
from vidllm.errors.paths import is_file, output_file, output_folder, shown
from vidllm.errors.registry import did_you_mean

#: Grows when a library of before can no longer be read; kept as SQLite's `user_version`.
SCHEMA = 1
_FILE = "library.sqlite"
_WAIT = 30.0  # seconds for another process to finish its change
_TABLE = """
CREATE TABLE videos (
    name TEXT PRIMARY KEY,
    video TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL DEFAULT '',
    duration REAL NOT NULL DEFAULT 0,
    complete INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL DEFAULT 0,
    added TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Entry:
    """One video of a library.

    Attributes:
        name: of the entry; its index is the file `NAME.vidx` of the folder.
        index: that file. video: where the video was when it was indexed.
        duration: seconds that are indexed. complete: whether that is all of the video.
        bytes: of the index. changed: when its file last was, in ns. added: when, in UTC.
        model: mark of the model that made it.
        problem: why it cannot be searched, one line; None where it can.
    """

    name: str
    index: str
    video: str
    duration: float
    complete: bool
    bytes: int
    changed: int
    added: str
    model: str
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Catalogue:
    """The table of a library.

    Args:
        folder: of the library; it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> Path:
        """Where the index of a name is."""
        return self.folder / f"{name}.vidx"

    def make(self) -> None:
        """Make the folder and the table where they are not there.

        Raises:
            WorkError: it cannot be written.
        """
        output_folder(self.folder, "the library")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritten(self.folder, error) from error
        with self._open(create=True) as db, _change(db):
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                db.execute(_TABLE)
                db.execute(f"PRAGMA user_version = {SCHEMA}")

    def entries(self) -> list[Entry]:
        """All entries, by name. Raises InputError where there is no library."""
        with self._open() as db:
            return [self._entry(row) for row in db.execute("SELECT * FROM videos ORDER BY name")]

    def entry(self, name: str) -> Entry:
        """One entry. Raises InputError where there is none of that name."""
        with self._open() as db:
            return self._entry(self._row(db, name))

    def remove(self, name: str) -> Entry:
        """Forget an entry; its files stay. Raises InputError where there is none."""
        with self._open() as db, _change(db):
            entry = self._entry(self._row(db, name))
            db.execute("DELETE FROM videos WHERE name = ?", (name,))
        return entry

    def claim(
        self, stem: str, source: Mapping[str, Any], model: str, own: Path | None = None
    ) -> str:
        """The name of a video: the one that it has, or a free one, taken for it.

        Args:
            stem: the name that it should have. source: as `source_mark`. model: that it will be
                indexed by. own: an index of it, which may have the name already.

        Raises:
            InputError: the other indexes are of another model.
        """
        with self._open() as db, _change(db):
            stranger = db.execute(
                "SELECT name FROM videos WHERE model NOT IN ('', ?) AND sha256 <> ?",
                (model, source["sha256"]),
            ).fetchone()
            if stranger is not None:
                raise InputError(
                    f"{self.folder.name} holds indexes of another model, such as "
                    f"{stranger['name']}: use that model, or another folder"
                )
            row = db.execute("SELECT name FROM videos WHERE sha256 = ?", (source["sha256"],))
            known = row.fetchone()
            if known is not None:
                name = str(known["name"])
                db.execute("UPDATE videos SET video = ? WHERE name = ?", (source["path"], name))
                return name
            taken = {one["name"] for one in db.execute("SELECT name FROM videos")}
            name, number = stem, 1
            while name in taken or self._stands(name, own):
                number += 1
                name = f"{stem}-{number}"
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            db.execute(
                "INSERT INTO videos (name, video, sha256, added) VALUES (?, ?, ?, ?)",
                (name, source["path"], source["sha256"], now),
            )
        return name

    def record(self, name: str, facts: Mapping[str, Any]) -> Entry:
        """Write down what the index of a name is now."""
        state = self.place(name).stat()
        with self._open() as db, _change(db):
            db.execute(
                "UPDATE videos SET model = ?, duration = ?, complete = ?, bytes = ?, changed = ? "
                "WHERE name = ?",
                (facts["model"], facts["until"], facts["complete"], state.st_size,
                 state.st_mtime_ns, name),
            )  # fmt: skip
            return self._entry(self._row(db, name))

    def _stands(self, name: str, own: Path | None) -> bool:
        """Whether a file that nobody added has this name."""
        place = self.place(name)
        return place.exists() and not (own is not None and place.samefile(own))

    def _entry(self, row: sqlite3.Row) -> Entry:
        name, place = row["name"], self.place(row["name"])
        told = {key: row[key] for key in row.keys() if key != "sha256"}  # noqa: SIM118
        entry = Entry(**{**told, "index": str(place), "complete": bool(row["complete"])})
        try:
            state = place.stat()
        except OSError:
            how = "is missing" if row["changed"] else "is not finished"
            why = f"{place.name} {how}: add {entry.video} again, or remove {name}"
            return replace(entry, problem=why)
        if (state.st_size, state.st_mtime_ns) != (entry.bytes, entry.changed):
            why = f"{place.name} is not the file that was added: add {place} as it is, or remove "
            return replace(entry, problem=why + name)
        return entry

    def _row(self, db: sqlite3.Connection, name: str) -> sqlite3.Row:
        row = db.execute("SELECT * FROM videos WHERE name = ?", (name,)).fetchone()
        if row is None:
            names = [one["name"] for one in db.execute("SELECT name FROM videos")]
            hint = did_you_mean(name, names, cutoff=0.5, otherwise="list shows what there is")
            raise InputError(f"no video {name!r} in {self.folder.name}: {hint}")
        return row

    @contextmanager
    def _open(self, create: bool = False) -> Iterator[sqlite3.Connection]:
        file = self.folder / _FILE
        if create:
            output_file(file, "the library's file", beside="-journal")
        elif not is_file(file):
            raise InputError(f"{shown(self.folder)} is no library: add a video to make one")
        try:
            db = sqlite3.connect(file, timeout=_WAIT, isolation_level=None)
            try:
                db.row_factory = sqlite3.Row
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version > SCHEMA:
                    raise InputError(
                        f"{file} was made by a newer vidllm (schema {version}, this is {SCHEMA})"
                    )
                yield db
            finally:
                db.close()
        except sqlite3.OperationalError as error:
            raise WorkError(f"{file} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{file} is damaged: delete it, and add the indexes beside it again"
            ) from error


@contextmanager
def _change(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction, begun as a writer so that no other one comes between."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
