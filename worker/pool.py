"""The pool of this worker: its threads or processes, the slots that they share, their garbage collection."""

import fcntl
import gc
import hashlib
import tempfile
from typing import IO, Any

import structlog
from celery import bootsteps, signals
from celery.concurrency import solo

log = structlog.get_logger(__name__)

MIN_THREADS = 4
"""One for the annotation of chunks, one for another slot, one for steps without a slot, and one for stops."""


GARBAGE_COLLECTION_THRESHOLDS = 20_000, 20, 50
"""Of Python's three generations. With its own, a process that has 64 requests in flight spends a third of its
time in looking through objects that stay."""


class SlotFile:
    """Slots that the processes of a prefork pool share: record locks, which end with their process.

    The file has no name and no content. It is made before the processes are forked from their parent.
    """

    MAX_SLOTS = 4096

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process lives

    def acquire(self, name: str, slot: int) -> bool:
        """Whether no other process holds this slot; it is then this process's."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset(name, slot))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, name: str, slot: int) -> None:
        """Give the slot back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._offset(name, slot))

    def _offset(self, name: str, slot: int) -> int:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:5], "big")
        return number * self.MAX_SLOTS + slot


class Pool:
    """The worker of this process, once there is one."""

    worker: Any = None
    slot_file: SlotFile | None = None

    def threads(self) -> int:
        """How many threads or processes it has, or may grow to."""
        worker = self.worker
        found = getattr(worker, "max_concurrency", None) or getattr(worker, "concurrency", None)
        return found if isinstance(found, int) else 1

    def consumes(self, queue: str) -> bool:
        """Whether the worker gets messages of this queue; without a worker, this process does everything."""
        return self.worker is None or queue in self.worker.app.amqp.queues.consume_from


pool = Pool()


@signals.celeryd_init.connect(weak=False)
def _remember(instance: Any = None, **_: Any) -> None:
    pool.worker, pool.slot_file = instance, SlotFile()


@signals.worker_ready.connect(weak=False)
@signals.worker_process_init.connect(weak=False)
def _spare_garbage_collector(**_: Any) -> None:
    """Leave what the process has loaded out of all later collections, and collect less often.

    A worker is ready again after each loss of its broker: what was left out before and has gone is collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_COLLECTION_THRESHOLDS)


class MinThreadsStep(bootsteps.Step):
    """Gives every pool at least `MIN_THREADS`, before it is made."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        if issubclass(parent.pool_cls, solo.TaskPool):
            log.warning("a pool `solo` has one thread: a step that hangs delays stops; use `--pool threads`")
            return
        asked = parent.min_concurrency
        for name in ("concurrency", "min_concurrency", "max_concurrency"):
            if getattr(parent, name):
                setattr(parent, name, max(MIN_THREADS, getattr(parent, name)))
        if asked < MIN_THREADS:
            log.info("pool enlarged, so that control work always has a thread", asked=asked, size=MIN_THREADS)
