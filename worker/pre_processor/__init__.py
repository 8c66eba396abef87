"""From "this run needs a pre-processor" to "it runs": detection, dispatch, the waiting list."""

from worker.pre_processor.dispatch import dispatch_body, dispatch_params
from worker.pre_processor.serve_application import classify_serve_app, counts_as_failed

__all__ = ["classify_serve_app", "counts_as_failed", "dispatch_body", "dispatch_params"]
