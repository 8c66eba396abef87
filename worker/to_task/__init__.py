"""Pre-annotate a project's tasks: prepare, collect ids, annotate in chunks, finalize; the ledger of it."""
