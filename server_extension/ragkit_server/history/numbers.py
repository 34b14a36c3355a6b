"""Which events of which publisher have come: what makes "exactly once" out of "sent again".

Publishers number their events and send them again until they are acknowledged. A number that has
come is never broadcast again, and that is known for as long as the history lasts: it is committed
together with the event (`ragkit_server.history.archive`).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping

MAX_PUBLISHERS = 10_000


class Numbers:
    """The event numbers that one publisher's events have been seen under, as disjoint ranges.

    A range list and not the highest number: a journal with 1..50 may be adopted after its
    publisher, connected again, has already sent 51.

    Args:
        text: What `str` of another one gave, to go on from there.

    Raises:
        ValueError: ``text`` is nothing of the kind.
    """

    __slots__ = ("_ranges", "committed")

    MAX_RANGES = 256

    def __init__(self, text: str = "") -> None:
        self._ranges: list[tuple[int, int]] = []
        for part in filter(None, text.split(",")):
            low, _, high = part.partition("-")
            self._ranges.append((int(low), int(high or low)))
        self.committed = self.last
        """The highest number whose event is safe."""

    def __str__(self) -> str:
        return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in self._ranges)

    @property
    def last(self) -> int:
        """The highest number seen; 0 before the first."""
        return self._ranges[-1][1] if self._ranges else 0

    def add(self, n: int) -> bool:
        """Note ``n``; return whether it was new."""
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
            # Only a publisher that skips numbers at random comes here; forgetting its oldest holes
            # can drop a late event of it, never repeat one.
            (first, _), (_, second) = ranges[:2]
            ranges[:2] = [(first, second)]
        return True


class Publishers:
    """The numbers of every publisher, the least recently heard first; the newest 10,000 are kept.

    Args:
        stored: Numbers as text by publisher id, from an earlier life of the server.
    """

    def __init__(self, stored: Mapping[str, str] | None = None) -> None:
        self._numbers: OrderedDict[str, Numbers] = OrderedDict()
        for id, text in (stored or {}).items():
            with contextlib.suppress(ValueError):  # damaged; its publisher may say something twice, the server starts
                self._numbers[id] = Numbers(text)
        self._changed: set[str] = set()
        self._gone: list[str] = []

    def is_new(self, publisher: str, n: int) -> bool:
        """Note that event ``n`` of ``publisher`` has come; return whether it is the first time."""
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
        """Return the highest number of ``publisher`` whose event is safe; 0 if none is."""
        numbers = self._numbers.get(publisher)
        return numbers.committed if numbers is not None else 0

    def take_changes(self) -> dict[str, str | None]:
        """Return the numbers that have changed since the last call, as text; None: forgotten."""
        changes: dict[str, str | None] = dict.fromkeys(self._gone)
        changes |= {id: str(self._numbers[id]) for id in self._changed if id in self._numbers}
        self._gone, self._changed = [], set()
        return changes

    def touch_all(self) -> None:
        """Let the next `take_changes` return all of them: they are to be written somewhere new."""
        self._changed = set(self._numbers)

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """Note that these changes are safe."""
        for id, text in changes.items():
            if text is not None and (numbers := self._numbers.get(id)) is not None:
                numbers.committed = Numbers(text).last
