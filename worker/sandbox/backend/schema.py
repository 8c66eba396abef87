"""The tables of the sandbox's backend. Those columns that hold JSON say so."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS agents (id INTEGER PRIMARY KEY, name TEXT, url TEXT, token TEXT, status TEXT);
CREATE TABLE IF NOT EXISTS data_collections (id INTEGER PRIMARY KEY, file_specifications TEXT);  -- JSON
CREATE TABLE IF NOT EXISTS projects (id INTEGER PRIMARY KEY, name TEXT, data_collection INTEGER);
CREATE TABLE IF NOT EXISTS data_units (
    id INTEGER PRIMARY KEY, data_collection INTEGER,
    files TEXT,                       -- JSON, a mapping or a list
    in_tasks INTEGER                  -- 0: a task's data unit comes without its files
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
    id PRIMARY KEY,                   -- an integer, or text where somebody seeded one
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
