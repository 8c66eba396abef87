"""The state of the backend: tables of one SQLite file, which several processes may open at once."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS agents (id INTEGER PRIMARY KEY, name TEXT, url TEXT, token TEXT, status TEXT);
CREATE TABLE IF NOT EXISTS models (id INTEGER PRIMARY KEY, name TEXT, file TEXT);  -- the file's URL
CREATE TABLE IF NOT EXISTS data_collections (id INTEGER PRIMARY KEY, file_specifications TEXT);  -- JSON
CREATE TABLE IF NOT EXISTS projects (id INTEGER PRIMARY KEY, name TEXT, data_collection INTEGER);
CREATE TABLE IF NOT EXISTS data_units (
    id INTEGER PRIMARY KEY, data_collection INTEGER,
    files TEXT,                       -- JSON, a mapping or a list
    in_tasks INTEGER                  -- 0: the data unit in a task has no files
);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, project INTEGER, data_unit INTEGER,
    data TEXT,                        -- JSON
    writes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS tasks_of_project ON tasks (project, id);
CREATE TABLE IF NOT EXISTS plugin_releases (
    id INTEGER PRIMARY KEY, code TEXT, version TEXT,
    config TEXT,                      -- JSON
    UNIQUE (code, version)
);
CREATE TABLE IF NOT EXISTS jobs (
    id PRIMARY KEY,                   -- an integer, or a text from a test
    action TEXT, plugin TEXT, agent INTEGER, status TEXT, parent,
    -- JSON:
    params TEXT, progress_record TEXT, metrics_record TEXT, console_logs TEXT, result TEXT, meta TEXT,
    created REAL, updated REAL
);
CREATE TABLE IF NOT EXISTS serve_applications (
    id INTEGER PRIMARY KEY, job, application TEXT, status TEXT,
    data TEXT,                        -- JSON
    seen INTEGER NOT NULL DEFAULT 0,  -- 1: the agent has reported it at least once
    created REAL
);
CREATE TABLE IF NOT EXISTS logs (
    id INTEGER PRIMARY KEY, job, event TEXT, data TEXT, datetime TEXT, step TEXT, level TEXT
);
CREATE TABLE IF NOT EXISTS annotations (task INTEGER, data TEXT, time REAL, count INTEGER);
CREATE TABLE IF NOT EXISTS requests (time REAL, method TEXT, path TEXT, status INTEGER, body TEXT);
"""


JSON_COLUMNS = frozenset(
    {
        "file_specifications",
        "files",
        "data",
        "config",
        "params",
        "progress_record",
        "metrics_record",
        "console_logs",
        "result",
        "meta",
    }
)

Row = dict[str, Any]
JobId = int | str


class State:
    """Reads and writes rows as dictionaries; columns that hold JSON are decoded."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=20)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        # Commits survive a killed process, not a power cut; that is enough for a sandbox.
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "State":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes in the block are committed together, or none. Does not nest."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""
        with self._lock:
            return [_decoded(row) for row in self._db.execute(sql, values).fetchall()]

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row of a query, or None."""
        with self._lock:
            row = self._db.execute(sql, values).fetchone()
        return None if row is None else _decoded(row)

    def value(self, sql: str, *values: object) -> Any:
        """The first column of the first row, or None; JSON is not decoded."""
        with self._lock:
            row = self._db.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def execute(self, sql: str, *values: object) -> int:
        """Change rows; returns their number."""
        with self._lock:
            return self._db.execute(sql, values).rowcount

    def insert(self, table: str, values: Mapping[str, object]) -> int:
        """Add a row; returns its id."""
        names, encoded = _encoded(values)
        sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
        with self._lock:
            return self._db.execute(sql, encoded).lastrowid or 0

    def insert_many(self, table: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Add rows that all have the same columns."""
        if rows:
            names = list(rows[0])
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
            with self._lock:
                self._db.executemany(sql, [_encoded(row)[1] for row in rows])

    def update(self, table: str, key: object, values: Mapping[str, object]) -> None:
        """Change the row whose id is `key`."""
        names, encoded = _encoded(values)
        changes = ", ".join(f"{name} = ?" for name in names)
        self.execute(f"UPDATE {table} SET {changes} WHERE id = ?", *encoded, key)  # noqa: S608

    def add_job(self, *, id: JobId | None = None, status: str = "PENDING", **columns: object) -> JobId:
        """Add a job; without an `id` it gets the next integer."""
        now = time.time()
        with self.transaction():
            if id is None:
                highest = "SELECT coalesce(max(id), 0) + 1 FROM jobs WHERE typeof(id) = 'integer'"
                id = int(self.value(highest))
            self.insert("jobs", {"id": id, "status": status, "created": now, "updated": now, **columns})
        return id

    def job(self, id: JobId) -> Row | None:
        """The row of a job, or None."""
        return self.row("SELECT * FROM jobs WHERE id = ?", id)

    def annotate(self, task: int, data: object) -> bool:
        """Write a task's data and record the write; False when there is no such task."""
        text = json.dumps(data)
        with self.transaction():
            writes = self.value(
                "UPDATE tasks SET data = ?, writes = writes + 1 WHERE id = ? RETURNING writes", text, task
            )
            if writes is None:
                return False
            self._db.execute("INSERT INTO annotations VALUES (?, ?, ?, ?)", (task, text, time.time(), writes))
        return True


def _encoded(values: Mapping[str, object]) -> tuple[list[str], list[object]]:
    encoded = [
        json.dumps(value) if name in JSON_COLUMNS and value is not None else value
        for name, value in values.items()
    ]
    return list(values), encoded


def _decoded(row: sqlite3.Row) -> Row:
    return {
        name: json.loads(row[name]) if name in JSON_COLUMNS and row[name] is not None else row[name]
        for name in row.keys()  # noqa: SIM118 - a sqlite3.Row iterates over its values
    }
