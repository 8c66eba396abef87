"""What a process makes once, for all of its threads, and what it keeps of that which it used last."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def once_per_process(make: Callable[[], T]) -> Callable[[], T]:
    """Call `make` once, also when several threads need its result at the same moment.

    `lru_cache` alone calls it once for each of them, and each keeps a result of its own.
    """
    lock = threading.RLock()
    cached = lru_cache(maxsize=1)(make)

    @wraps(make)
    def made() -> T:
        with lock:
            return cached()

    return made


class once_per_instance(Generic[T]):
    """A property that is made at its first use, also when several threads need it at the same moment.

    From Python 3.12 on a `cached_property` makes one for each of them: two drivers of Ray, for example.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self._lock = threading.RLock()
        self.__doc__ = make.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> T:
        # Python asks for it only until the instance has the attribute.
        attributes = vars(instance)
        with self._lock:
            if self._name not in attributes:
                attributes[self._name] = self._make(instance)
            made: T = attributes[self._name]
            return made


K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """What was used last, by key: what a process knows of releases must not grow with each that comes."""

    def __init__(self, most: int = 1_000) -> None:
        """`most`: values that are kept."""
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[V]:
        """All that are kept."""
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._values.clear()
