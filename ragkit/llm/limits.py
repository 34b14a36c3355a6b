"""Budgets and rate limits for language models. A budget holds across threads, processes and crashes."""

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
    """A limit on the cost of calls that outlives the process.

    The amount spent is stored under the budget's name in a SQLite file, shared by all threads and processes: objects
    with the same name and folder share it, also after a restart. Each object has its own cap. The maximum cost of a
    call is reserved before the call is made; the reservations of a killed process stay spent.

    Args:
        cap: The limit, in the currency of the prices.
        name: The budget's name.
        folder: The folder of ``budgets.db``. Default: the folder that RAGKIT_RUNS names, else ``runs``.

    Raises:
        InputError: The cap is negative or not finite.
    """

    def __init__(self, cap: float, *, name: str = "budget", folder: str | Path | None = None) -> None:
        self.name = name
        self.path = Path(folder or os.environ.get("RAGKIT_RUNS") or "runs").expanduser().absolute() / "budgets.db"
        self._cap = _cap(cap)
        # FULL: reservations must survive a power failure.
        self._database = SharedDatabase(self.path, _SCHEMA, synchronous="FULL")

    def __repr__(self) -> str:
        return f"Budget({self.cap:g}, name={self.name!r}, folder={str(self.path.parent)!r})"

    @property
    def cap(self) -> float:
        """The limit."""
        return self._cap

    @property
    def spent(self) -> float:
        """The cost of finished calls, plus the maximum cost of calls that are running or were cut off."""
        with self._transaction() as db:
            return sum(self._sums(db))

    @property
    def remaining(self) -> float:
        """The amount left for further calls."""
        return max(0.0, self.cap - self.spent)

    def raise_to(self, cap: float) -> None:
        """Raise the cap. Waiting calls continue.

        Raises:
            InputError: The new cap is lower than the current one. For a lower cap, create another Budget.
        """
        if _cap(cap) < self.cap:
            raise InputError(
                f"The cap is {self.cap:g} and can only be raised. For a lower cap, create another Budget({cap:g})."
            )
        self._cap = float(cap)

    def reserve(self, most: float, *, cancelled: Callable[[], bool] = never) -> int:
        """Reserve the maximum cost of a call, and return the reservation's id for `settle`.

        If the reservation could fit once running calls of this process have ended, wait for them. Reservations of
        other processes count as spent.

        Raises:
            BudgetError: The reservation does not fit.
            OperationCancelled: `cancelled` returned True during the wait.
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
        """Replace a call's reservation by its actual cost.

        Raises:
            RagkitError: The file cannot be written; the reservation stays spent.
        """
        with self._transaction() as db:
            if db.execute("DELETE FROM calls WHERE id = ?", (call,)).rowcount:
                db.execute(
                    "INSERT INTO budgets VALUES (?, ?) ON CONFLICT DO UPDATE SET settled = settled + excluded.settled",
                    (self.name, cost),
                )

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._database.close()

    def _sums(self, db: sqlite3.Connection) -> tuple[float, float]:
        """Return (settled costs plus reservations of other processes, reservations of this process)."""
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
                f"The file of budgets, '{self.path}', cannot be used: {error}. Free some disk space or fix the "
                "permissions, and run again. No call is made without being counted."
            ) from error


def _process() -> str:
    return f"{_PROCESS}-{os.getpid()}"


def _cap(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise InputError(f"A budget's cap must be 0 or more, and finite, not {value}.")
    return float(value)


@dataclass(slots=True)
class Taken:
    """A call's share of the rate limit, for one minute from its start.

    Attributes:
        at: When the call began.
        tokens: The maximum number of tokens of the call. Set it to the actual number when that is known.
    """

    at: float
    tokens: int


class RateLimit:
    """A limit on requests and tokens in any minute. Thread-safe; one thread waits at a time, the others queue.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit. A call that exceeds it waits until no other call was made for a minute.
        clock: Returns the time in seconds.
        sleep: Waits for a number of seconds, unless cancelled.

    Raises:
        InputError: A limit is less than 1.
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
        """Wait until a request with this number of tokens fits, and count it.

        Raises:
            OperationCancelled: `cancelled` returned True.
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
