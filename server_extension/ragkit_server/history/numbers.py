"""Deduplicates events: which event numbers of each publisher have been received.

Publishers number their events and resend them until they are acknowledged. An event with a known number is not
broadcast again. The numbers are committed together with the events (`ragkit_server.history.archive`), so they are known
as long as the history exists.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping

MAX_PUBLISHERS = 10_000


class Numbers:
    """The received event numbers of one publisher, as disjoint ranges.

    The highest number is not enough: a journal with 1..50 may be adopted after its publisher has reconnected and sent
    51.

    Args:
        text: Initial ranges, as returned by `str`.

    Raises:
        ValueError: ``text`` has no valid ranges.
    """

    __slots__ = ("_ranges", "committed")

    MAX_RANGES = 256

    def __init__(self, text: str = "") -> None:
        self._ranges: list[tuple[int, int]] = []
        for part in filter(None, text.split(",")):
            low, _, high = part.partition("-")
            self._ranges.append((int(low), int(high or low)))
        self.committed = self.last
        """The highest committed number."""

    def __str__(self) -> str:
        return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in self._ranges)

    @property
    def last(self) -> int:
        """The highest received number; 0 if there is none."""
        return self._ranges[-1][1] if self._ranges else 0

    def add(self, n: int) -> bool:
        """Add ``n``; return whether it is new."""
        ranges = self._ranges
        at = len(ranges)
        while at and ranges[at - 1][0] > n:
            at -= 1
        if at and n <= ranges[at - 1][1]:
            return False
        low = high = n
        if at < len(ranges) and ranges[at][0] == n + 1:
            high = ranges.pop(at)[1]
        if at and ranges[at - 1][1] == n - 1:
            at -= 1
            low = ranges.pop(at)[0]
        ranges.insert(at, (low, high))
        if len(ranges) > self.MAX_RANGES:
            # Only a publisher that skips many numbers gets here. Closing its oldest gap may drop a late event, but
            # never causes a duplicate.
            (first, _), (_, second) = ranges[:2]
            ranges[:2] = [(first, second)]
        return True


class Publishers:
    """The event numbers of all publishers, least recently used first; the newest 10,000 publishers are kept.

    Args:
        stored: Numbers as text by publisher id, stored before a restart of the server.
    """

    def __init__(self, stored: Mapping[str, str] | None = None) -> None:
        self._numbers: OrderedDict[str, Numbers] = OrderedDict()
        for id, text in (stored or {}).items():
            with contextlib.suppress(
                ValueError
            ):  # damaged: start anyway, although events of this publisher may be repeated
                self._numbers[id] = Numbers(text)
        self._changed: set[str] = set()
        self._gone: list[str] = []

    def is_new(self, publisher: str, n: int) -> bool:
        """Record event ``n`` of ``publisher``; return whether it is new."""
        numbers = self._numbers.get(publisher)
        if numbers is None:
            numbers = self._numbers[publisher] = Numbers()
            if len(self._numbers) > MAX_PUBLISHERS:
                self._gone.append(self._numbers.popitem(last=False)[0])
        self._numbers.move_to_end(publisher)
        new = numbers.add(n)
        if new:
            self._changed.add(publisher)
        return new

    def last(self, publisher: str) -> int:
        """Return the highest committed number of ``publisher``; 0 if there is none."""
        numbers = self._numbers.get(publisher)
        return numbers.committed if numbers is not None else 0

    def take_changes(self) -> dict[str, str | None]:
        """Return the numbers that have changed since the last call, as text; None for removed publishers."""
        changes: dict[str, str | None] = dict.fromkeys(self._gone)
        changes |= {id: str(self._numbers[id]) for id in self._changed if id in self._numbers}
        self._gone, self._changed = [], set()
        return changes

    def touch_all(self) -> None:
        """Make the next `take_changes` return all numbers, because they have to be written to a new place."""
        self._changed = set(self._numbers)

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """Note that these changes are committed."""
        for id, text in changes.items():
            if text is not None and (numbers := self._numbers.get(id)) is not None:
                numbers.committed = Numbers(text).last
