"""synapse-worker: a Celery worker that deploys models on Ray Serve and pre-annotates tasks.

`celery -A worker worker` finds the app here. It is made on first use, so that plugin code, which imports
`worker.actions` in processes of Ray, needs neither the broker nor its settings.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "celery":
        from worker.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
