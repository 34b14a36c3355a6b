"""A cap on what calls to language models cost, which holds across threads, processes and kills."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ragkit.cancellation import POLL_SECONDS, never, wait
from ragkit.errors import BudgetError, InputError, RagkitError, require_count
from ragkit.sqlite import SharedDatabase

_SCHEMA = """
CREATE TABLE IF NOT EXISTS budgets (name TEXT PRIMARY KEY, settled REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT, budget TEXT NOT NULL, process TEXT NOT NULL, most REAL NOT NULL);
"""
_PROCESS = secrets.token_hex(8)


class Budget:
    """A cap on what calls cost, which the process's end does not lift.

    What is spent is kept in one SQLite file, under the budget's name, for every thread and process that uses it: an
    object, or a process, with the same name and folder goes on from there. Each object has its own cap. A call takes
    the most that it can cost before it is made; what a killed process had taken stays spent.

    Args:
        cap: What may be spent, in the currency of the prices.
        name: Which budget.
        folder: Where ``budgets.db`` is. Default: what RAGKIT_RUNS names, else ``runs``.

    Raises:
        InputError: A cap that cannot be one.
    """

    def __init__(self, cap: float, *, name: str = "budget", folder: str | Path | None = None) -> None:
        self.name = name
        self.path = Path(folder or os.environ.get("RAGKIT_RUNS") or "runs").expanduser().absolute() / "budgets.db"
        self._cap = _cap(cap)
        # FULL: what was reserved must outlive a power failure.
        self._database = SharedDatabase(self.path, _SCHEMA, synchronous="FULL")

    def __repr__(self) -> str:
        return f"Budget({self.cap:g}, name={self.name!r}, folder={str(self.path.parent)!r})"

    @property
    def cap(self) -> float:
        """What may be spent."""
        return self._cap

    @property
    def spent(self) -> float:
        """What calls have cost, and the most that those can cost that are under way or were cut off."""
        with self._transaction() as db:
            return sum(self._sums(db))

    @property
    def remaining(self) -> float:
        """What another call can cost."""
        return max(0.0, self.cap - self.spent)

    def raise_to(self, cap: float) -> None:
        """Allow more; calls that wait go on.

        Raises:
            InputError: It is less than now. For a lower cap, make another Budget.
        """
        if _cap(cap) < self.cap:
            raise InputError(f"The cap is {self.cap:g} and can only be raised. For less, make another Budget({cap:g}).")
        self._cap = float(cap)

    def reserve(self, most: float, *, cancelled: Callable[[], bool] = never) -> int:
        """Take the most that a call can cost, and return its number for `settle`.

        If it does not fit now and could when calls of this process have ended, they are waited for. What other
        processes have taken counts as spent.

        Raises:
            BudgetError: It does not fit.
            OperationCancelled: `cancelled` said so while it waited.
            RagkitError: The file cannot be read or written.
        """
        while True:
            with self._transaction() as db:
                fixed, own = self._sums(db)
                room = self.cap * (1 + 1e-9) - fixed  # sums of floating-point numbers are not exact
                if own + most <= room:
                    call = db.execute(
                        "INSERT INTO calls (budget, process, most) VALUES (?, ?, ?)", (self.name, _process(), most)
                    )
                    return int(call.lastrowid or 0)
            if most > room:
                raise BudgetError(self.name, spent=fixed + own, cap=self.cap, most=most)
            wait(POLL_SECONDS, cancelled)

    def settle(self, call: int, cost: float) -> None:
        """Replace what a call had taken with what it did cost.

        Raises:
            RagkitError: The file cannot be written; what the call had taken stays spent.
        """
        with self._transaction() as db:
            if db.execute("DELETE FROM calls WHERE id = ?", (call,)).rowcount:
                db.execute(
                    "INSERT INTO budgets VALUES (?, ?) ON CONFLICT DO UPDATE SET settled = settled + excluded.settled",
                    (self.name, cost),
                )

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        self._database.close()

    def _sums(self, db: sqlite3.Connection) -> tuple[float, float]:
        """Return (what is settled or other processes have taken, what this process has taken)."""
        (settled,) = db.execute("SELECT total(settled) FROM budgets WHERE name = ?", (self.name,)).fetchone()
        others, own = db.execute(
            "SELECT total(most) FILTER (WHERE process != ?1), total(most) FILTER (WHERE process = ?1) "
            "FROM calls WHERE budget = ?2",
            (_process(), self.name),
        ).fetchone()
        return settled + others, own

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database.transaction() as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise RagkitError(
                f"'{self.path}' keeps what budgets have spent, and cannot be used: {error}. Make room on the disk "
                "or mend the permissions, and run again; no call is made that could not be counted."
            ) from error


def _process() -> str:
    return f"{_PROCESS}-{os.getpid()}"


def _cap(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise InputError(f"A budget's cap must be 0 or more, and finite, not {value}.")
    return float(value)


@dataclass(slots=True)
class Taken:
    """What a call has taken from the minute after it began.

    Attributes:
        at: When it began.
        tokens: The most that it can use; set it to what was used when that is known.
    """

    at: float
    tokens: int


class RateLimit:
    """So many requests and tokens in any minute. Threads share one; who comes first goes first.

    Args:
        requests_per_minute: None for any number.
        tokens_per_minute: None for any number. A call that is larger than this waits for a minute without others.
        clock: Seconds.
        sleep: Waits for so many seconds, unless it is cancelled.

    Raises:
        InputError: A limit under 1.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float, Callable[[], bool]], object] = wait,
    ) -> None:
        for name, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None:
                require_count(name, limit)
        self._requests = math.inf if requests_per_minute is None else requests_per_minute
        self._tokens = math.inf if tokens_per_minute is None else tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._turn = threading.Lock()
        self._minute: deque[Taken] = deque()

    def take(self, tokens: int, *, cancelled: Callable[[], bool] = never) -> Taken:
        """Wait until a request with so many tokens fits, and count it.

        Raises:
            OperationCancelled: `cancelled` said so.
        """
        while not self._turn.acquire(timeout=POLL_SECONDS):
            wait(0, cancelled)
        try:
            while True:
                now = self._clock()
                while self._minute and self._minute[0].at <= now - 60:
                    self._minute.popleft()
                used = sum(taken.tokens for taken in self._minute)
                if not self._minute or (len(self._minute) < self._requests and used + tokens <= self._tokens):
                    self._minute.append(taken := Taken(now, tokens))
                    return taken
                self._sleep(POLL_SECONDS, cancelled)
        finally:
            self._turn.release()
