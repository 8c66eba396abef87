"""What users read when a pre-processor does not come up; the words are the contract's."""

from worker.platform import clean_exception, error_type

DISPATCH_FAILED = "Pre-processor deployment dispatch failed ({error_type})"
APPLICATION_FAILED = "Pre-processor deployment failed: serve application reached terminal state ({status})"
JOB_FAILED = "Pre-processor deployment failed: job reached terminal state ({status})"
TIMED_OUT = "Pre-processor did not become ready within timeout"


def dispatch_failed(cause: BaseException) -> RuntimeError:
    """The backend did not take the dispatch; `__cause__` is its error, cleaned of secrets."""
    error = RuntimeError(DISPATCH_FAILED.format(error_type=error_type(cause)))
    error.__cause__ = clean_exception(cause)
    return error


def application_failed(status: str) -> RuntimeError:
    """The application is in a state from which it does not come back."""
    return RuntimeError(APPLICATION_FAILED.format(status=status))


def job_failed(status: str) -> RuntimeError:
    """The job of the deployment ended without success."""
    return RuntimeError(JOB_FAILED.format(status=status))


def timed_out() -> RuntimeError:
    """The wait was as long as it may be."""
    return RuntimeError(TIMED_OUT)
