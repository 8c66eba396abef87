"""From "this run needs a pre-processor" to "it runs": detection, dispatch, the waiting room."""

from worker.pre_processor.classify import classify_serve_app, counts_as_failed
from worker.pre_processor.payload import dispatch_body, dispatch_params

__all__ = ["classify_serve_app", "counts_as_failed", "dispatch_body", "dispatch_params"]
