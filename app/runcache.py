"""Finished runs kept in memory, so that a change of view simulates nothing again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentlyUsed(Generic[T]):
    """Values up to a total weight, the least recently used dropped first; safe to share between sessions.

    The newest value stays even if it alone weighs more than `capacity`.
    """

    def __init__(self, capacity: int, weigh: Callable[[T], int]) -> None:
        self.capacity, self.weigh = capacity, weigh
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept under `key`, made now if there is none; the lock is not held while it is made."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > 1 and sum(map(self.weigh, self._values.values())) > self.capacity:
                self._values.popitem(last=False)
        return value
