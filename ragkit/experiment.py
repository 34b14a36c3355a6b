"""Compare set-ups on judged questions, lose nothing, and see whether a difference is real.

    experiment = Experiment(
        load_dataset("data/questions", corpus="data/handbook"),
        System(retriever=choose(BM25(), Dense(), Hybrid())),
        measures=["nDCG@10", "R@100"],
        baseline="BM25()",
    )
    experiment.run()

Whatever was computed before, by a run that was killed, by another experiment or for another measure, is found in the
cells (`ragkit.stages`) and not computed again. Progress and each system's row go to the socket.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ragkit import events
from ragkit.cache import CachedEmbedder, EmbeddingCache
from ragkit.cells import Cells
from ragkit.chat import never
from ragkit.corpus import Passages
from ragkit.datasets import Dataset
from ragkit.errors import CancelledError, InputError
from ragkit.identity import digest, identity
from ragkit.measures import check_gold, parse_measure
from ragkit.progress import CellsBar
from ragkit.publisher import Publisher, default_publisher
from ragkit.report import Pace
from ragkit.results import Result, ranked
from ragkit.stages import Cut, Retrieval, cut, records, windows
from ragkit.systems import System, named

__all__ = ["Experiment", "Running"]

_TELL_SECONDS = 0.25
_LONGEST = 2_000  # characters of a message
_MOST_ROWS = 200  # of a leaderboard that is told


class Experiment:
    """Systems, and the judged questions that they are compared on.

    Args:
        dataset: Documents, questions and what is right; see `ragkit.datasets.load_dataset`.
        systems: One or several, with choices in them; a dict names them. See `ragkit.systems.System`.
        measures: In the notation of ir_measures (``"nDCG@10"``, ``"R@100"``), or on spans (``"SpanRecall@5"``).
        baseline: The name of the system that the others are compared with; the first one if None.
        name: What listeners see; the dataset's name if None.
        store: Folder that keeps what was computed, in ``cells.db``. Experiments that share it share their work.
        cache: Where embeddings are kept; this user's cache if None, nowhere if False.
        publisher: Where progress goes; this process's own if None.
        progress: Whether to show a bar.

    Raises:
        InputError: No system, two with the same name, a measure that does not exist or that the dataset has no gold
            for, a baseline that is none of the systems.
    """

    def __init__(
        self,
        dataset: Dataset,
        systems: System | Iterable[System] | Mapping[str, System],
        *,
        measures: Sequence[Any] = ("nDCG@10", "R@100"),
        baseline: str | None = None,
        name: str | None = None,
        store: str | Path = "runs",
        cache: EmbeddingCache | Literal[False] | None = None,
        publisher: Publisher | None = None,
        progress: bool = True,
    ) -> None:
        self.dataset = dataset
        self.name = name or dataset.name
        self.measures = [parse_measure(measure) for measure in measures]
        if not self.measures:
            raise InputError("An experiment needs a measure, for example measures=['nDCG@10'].")
        check_gold(self.measures, dataset)
        self.systems = named(systems)
        names = [system.name for system in self.systems]
        if baseline is not None and baseline not in names:
            raise InputError(f"The baseline '{baseline}' is none of the systems: {'; '.join(names)}.")
        self.baseline = baseline or names[0]
        self.cells = Cells(Path(store) / "cells.db")
        self.publisher = publisher or default_publisher()
        self._cache = cache
        self._progress = progress
        self._lock = threading.Lock()  # over systems, which another thread may add to
        self._embedders: dict[int, CachedEmbedder] = {}
        self._cuts: dict[str, Cut] = {}

    def __repr__(self) -> str:
        return (
            f"Experiment({self.name!r}: {len(self.systems)} systems, {len(self.dataset.queries)} questions, "
            f"{', '.join(map(str, self.measures))})"
        )

    def add(self, systems: System | Iterable[System] | Mapping[str, System]) -> None:
        """Add systems; a run that is under way comes to them.

        Raises:
            InputError: A name is taken.
        """
        with self._lock:
            self.systems += named(systems, taken=[system.name for system in self.systems])

    def run(
        self, *, cancelled: Callable[[], bool] = never, on_system: Callable[[Result], object] = lambda result: None
    ) -> Result:
        """Compute what is missing, and measure.

        Ctrl-C (or an interrupted kernel) stops it; what was computed is kept, and the next call goes on.

        Args:
            cancelled: Asked several times a second; True stops the work.
            on_system: Called with the interim result at the beginning and after each system.

        Raises:
            CancelledError: ``cancelled`` said so.
            CellsError, EmbeddingError, InputError: See `ragkit.stages`.
        """
        result = Result(self.dataset, self.measures, self.baseline)
        with CellsBar(self._progress, self.name) as bar:
            run = _Run(self, result, bar)
            run.tell("running", now=True)
            on_system(result)
            try:
                while (system := self._next(result)) is not None:
                    self._measure(system, result, run, cancelled)
                    on_system(result)
            except (KeyboardInterrupt, CancelledError) as stopped:
                run.tell("cancelled", now=True, message=str(stopped) or "Interrupted. Run it again, and it goes on.")
                raise
            except Exception as error:  # a retriever of a user's own can raise anything: listeners hear of it
                run.tell("failed", now=True, message=str(error) or type(error).__name__)
                raise
            finally:
                self._cuts.clear()
            result.interim = False
            run.tell("done", now=True)
        return result

    def start(self) -> Running:
        """Run in the background; `add` systems meanwhile, look at the interim result, stop."""
        return Running(self)

    def _next(self, result: Result) -> System | None:
        """The next system to run: with the last one's cut, if there is one, so that vectors are held once."""
        with self._lock:
            waiting = [system for system in self.systems if system.name not in result.names]
        if not waiting:
            return None
        for system in waiting:
            if self._cut_key(system) in self._cuts:
                return system
        return waiting[0]

    def _measure(self, system: System, result: Result, run: _Run, cancelled: Callable[[], bool]) -> None:
        cut = self._cut(system, cancelled)
        retrieval = Retrieval(system.retriever, cut, self.cells)
        questions = [query.text for query in self.dataset.queries]
        rankings = retrieval.known(questions)
        run.begin(len(rankings))
        passages: Passages | None = None
        for window in windows(questions):
            if all(question in rankings for question in window):
                continue
            if cancelled():
                raise CancelledError("The experiment was stopped. Run it again, and it goes on.")
            if passages is None:
                passages = cut.passages(run.corpus, tell=run.embedding, cancelled=cancelled)
            rankings |= retrieval.rank(window, passages, known=rankings)
            run.ranked(len(rankings))
        latency = retrieval.known_latency()
        if latency is None:
            passages = passages or cut.passages(run.corpus, tell=run.embedding, cancelled=cancelled)
            latency = retrieval.latency(questions, passages)
        result.add(
            system,
            {query.id: ranked(cut.chunks, rankings[query.text]) for query in self.dataset.queries},
            passages=len(cut.chunks),
            latency_ms=latency,
        )
        run.finished(system.name)

    def _embedder(self, system: System) -> CachedEmbedder:
        return self._embedders.setdefault(id(system.embedder), CachedEmbedder(system.embedder, self._cache))

    def _cut_key(self, system: System) -> str:
        return digest(identity(system.chunker), identity(self._embedder(system)))

    def _cut(self, system: System, cancelled: Callable[[], bool]) -> Cut:
        key = self._cut_key(system)
        if key not in self._cuts:
            self._cuts.clear()  # one at a time is in memory
            self._cuts[key] = cut(
                self.dataset.documents, system.chunker, self._embedder(system), self.cells, cancelled=cancelled
            )
        return self._cuts[key]


class _Run:
    """Tells the bar and the socket how far one run is."""

    def __init__(self, experiment: Experiment, result: Result, bar: CellsBar) -> None:
        self.corpus = records(experiment.dataset.documents)
        self._experiment = experiment
        self._result = result
        self._bar = bar
        self._task_id = uuid.uuid4().hex
        self._questions = len({query.text for query in experiment.dataset.queries})
        self._finished = 0
        self._ranked = 0
        self._embedded = 0  # texts, for the cuts before
        self._texts = (0, 0)  # done and all, for this one
        self._told = -_TELL_SECONDS
        self._pace = Pace()

    def begin(self, known: int) -> None:
        self._ranked = known
        self.tell("running")

    def embedding(self, done: int, total: int) -> None:
        self._texts = done, total
        self.tell("running", now=True)  # the next window may take long
        if done == total:
            self._embedded += total
            self._texts = (0, 0)
            self._pace = Pace()  # ranking has another one

    def ranked(self, count: int) -> None:
        self._ranked = count
        self.tell("running")

    def finished(self, name: str) -> None:
        """Tell a system's row."""
        self._finished += 1
        self._ranked = 0
        self.tell("running", now=True)
        self._experiment.publisher.publish(
            events.ExperimentResult(
                task_id=self._task_id,
                experiment=self._experiment.name,
                row=self._result.row(name),
                leaderboard=self._result.leaderboard()[:_MOST_ROWS],
            )
        )

    def tell(self, state: events.TaskState, *, now: bool = False, message: str | None = None) -> None:
        clock = time.monotonic()
        if not now and clock - self._told < _TELL_SECONDS:
            return
        self._told = clock
        systems = len(self._experiment.systems)
        done = self._finished * self._questions + self._ranked + self._embedded + self._texts[0]
        total = systems * self._questions + self._embedded + self._texts[1]
        rate = self._pace.rate(done)
        # While texts are embedded, what the other systems will take is not known.
        left = self._texts[1] - self._texts[0] or total - done
        doing = f", embedding {self._texts[1]:,} texts" if self._texts[1] else ""
        self._bar.show(done, total, f"{self._finished}/{systems} systems{doing}")
        self._experiment.publisher.publish(
            events.ExperimentProgress(
                task_id=self._task_id,
                experiment=self._experiment.name,
                state=state,
                cells_done=done,
                cells_total=total,
                eta_seconds=left / rate if rate and state == "running" else None,
                message=message and message[:_LONGEST],
            )
        )


class Running:
    """An experiment that runs in a thread of its own.

    Attributes:
        experiment: The experiment.
        interim: What was measured so far; None before it has begun.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._stop = threading.Event()
        self.interim: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"experiment {experiment.name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Running({self.experiment!r}: {'running' if self._thread.is_alive() else 'ended'})"

    def _run(self) -> None:
        try:
            self.experiment.run(cancelled=self._stop.is_set, on_system=self._keep)
        except BaseException as error:
            self._error = error

    def _keep(self, result: Result) -> None:
        self.interim = result

    def add(self, systems: System | Iterable[System] | Mapping[str, System]) -> None:
        """See `Experiment.add`."""
        self.experiment.add(systems)

    def stop(self) -> None:
        """Stop at once, and keep what was computed."""
        self._stop.set()
        self._thread.join()

    def result(self, *, timeout_seconds: float | None = None) -> Result:
        """Wait for the result.

        Raises:
            TimeoutError: It is not there yet.
            CancelledError: It was stopped.
            RagkitError: What `Experiment.run` raised.
        """
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise TimeoutError("The experiment is still running; ask again, or stop() it.")
        if self._error is not None:
            raise self._error
        assert self.interim is not None  # it ended without an error
        return self.interim
