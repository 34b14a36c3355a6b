"""Compare set-ups on judged questions, lose nothing, and see whether a difference is real.

    experiment = Experiment(
        load_dataset("data/questions", corpus="data/handbook"),
        System(retriever=choose(BM25(), Dense(), Hybrid())),
        measures=["nDCG@10", "R@100"],
        baseline="BM25()",
    )
    experiment.run()

Whatever was computed before, by a run that was killed, by another experiment or for another measure, is kept
(`ragkit.experiments.stages`) and not computed again. Progress and each system's row go to the socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ragkit.cancellation import never
from ragkit.embedding.cache import CachedEmbedder, EmbeddingCache
from ragkit.errors import BudgetError, InputError, OperationCancelled, require_count
from ragkit.evaluation.dataset import Dataset
from ragkit.evaluation.measures import Measure, check_gold, parse_measure
from ragkit.experiments.calls import Calls
from ragkit.experiments.dry_run import DryCalls, DryResults, Estimate, dry
from ragkit.experiments.fingerprint import identity
from ragkit.experiments.progress import ProgressReporter
from ragkit.experiments.result import Result
from ragkit.experiments.result_cache import ResultCache
from ragkit.experiments.runner import Evaluation, Outcome
from ragkit.experiments.stages import ChunkedCorpus, cut, records
from ragkit.experiments.system import System, described, expand_systems
from ragkit.hashing import hash_values
from ragkit.live.publisher import Publisher, default_publisher
from ragkit.progress_bar import CellsBar
from ragkit.retrieval.corpus import Documents
from ragkit.runs.run import Run
from ragkit.runs.store import RunStore


class Experiment:
    """Systems, and the judged questions that they are compared on.

    Args:
        dataset: Documents, questions and what is right; see `ragkit.evaluation.load_dataset`.
        systems: One or several, with choices in them; a dict names them. See `ragkit.experiments.System`.
        measures: In the notation of ir_measures (``"nDCG@10"``, ``"R@100"``), on spans (``"SpanRecall@5"``), of answers
            (``"CitationRecall"``, ``"F1"``, ``"Abstention"``, ...: see `ragkit.evaluation.answer_measures`), or judged
            by a model (``Faithfulness(llm)``). Answers are made if a measure looks at them.
        baseline: The name of the system that the others are compared with; the first one if None.
        name: What listeners see; the dataset's name if None.
        store: Folder that keeps what was computed, in ``results.db``, and a run for each `run` (`ragkit.runs`).
            Experiments that share it share their work.
        cache: Where embeddings are kept; this user's cache if None, nowhere if False.
        publisher: Where progress goes; this process's own if None.
        progress: Whether to show a bar.
        max_concurrency: How many calls to language models are under way at a time.
        record: Whether each `run` leaves a run in the store.
        timed: Whether to measure how long retrieval takes for one question.

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
        max_concurrency: int = 4,
        record: bool = True,
        timed: bool = True,
    ) -> None:
        self.dataset = dataset
        self.name = name or dataset.name
        self.measures = list(dict.fromkeys(parse_measure(measure) for measure in measures))
        if not self.measures:
            raise InputError("An experiment needs a measure, for example measures=['nDCG@10'].")
        if len(set(map(str, self.measures))) < len(self.measures):
            raise InputError(
                f"Two measures have the same name: {', '.join(map(str, self.measures))}. Give another judge an "
                "experiment of its own; what is known is not computed again."
            )
        check_gold(self.measures, dataset)
        self.systems = expand_systems(systems)
        names = [system.name for system in self.systems]
        if baseline is not None and baseline not in names:
            raise InputError(f"The baseline '{baseline}' is none of the systems: {'; '.join(names)}.")
        self.baseline = baseline or names[0]
        self.result_cache = ResultCache(Path(store) / "results.db")
        self.publisher = publisher or default_publisher()
        self._cache = cache
        self._progress = progress
        require_count("max_concurrency", max_concurrency)
        self._max_concurrency = max_concurrency
        self._timed = timed
        self._runs = RunStore(store) if record else None
        self._lock = threading.Lock()  # over systems, which another thread may add to
        self._embedders: dict[int, CachedEmbedder] = {}

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
            self.systems += expand_systems(systems, taken=[system.name for system in self.systems])

    def run(
        self, *, cancelled: Callable[[], bool] = never, on_system: Callable[[Result], object] = lambda result: None
    ) -> Result:
        """Compute what is missing, and measure.

        Ctrl-C (or an interrupted kernel) stops it; what was computed is kept, and the next call goes on.

        Args:
            cancelled: Asked several times a second; True stops the work.
            on_system: Called with the interim result at the beginning and after each system.

        Raises:
            BudgetError: What the next call to a model could cost is more than is left. Nothing is lost: raise the
                budget and run again.
            OperationCancelled: ``cancelled`` said so.
            ResultCacheError, EmbeddingError, InputError: See `ragkit.experiments.stages`.
            LLMError: The model refuses the key, or answers nothing at all. Single calls that fail are in
                `Result.errors` instead.
        """
        result = Result(self.dataset, self.measures, self.baseline)
        on_system(result)
        questions = len({query.text for query in self.dataset.queries})
        with CellsBar(self._progress, self.name) as bar:
            live = ProgressReporter(self.name, self.publisher, bar, questions=questions)
            kept: Run | None = None
            try:
                kept = self._begin_run()
                live.tell("running", systems=len(self.systems), now=True)
                results = self.result_cache
                calls = Calls(results, max_concurrency=self._max_concurrency, cancelled=cancelled, tell=live.working)
                corpus = records(self.dataset.documents)
                held: dict[str, ChunkedCorpus] = {}
                while (system := self._next(result.names, held)) is not None:
                    live.tell("running", systems=len(self.systems))
                    cut = self._cut_by(system, held, results, cancelled)
                    result.add(
                        system, self._evaluate(system, self.measures, cut, corpus, results, calls, live, cancelled)
                    )
                    live.finished(result.row(system.name), result.leaderboard())
                    on_system(result)
                result.interim = False
                if kept is not None:
                    self._end_run(kept, result)
            except BaseException as error:
                # A retriever of a user's own can raise anything: listeners hear of it.
                is_stop = isinstance(error, KeyboardInterrupt | OperationCancelled | BudgetError)
                message = str(error) or (
                    "Interrupted. Run it again, and it goes on." if is_stop else type(error).__name__
                )
                live.tell("cancelled" if is_stop else "failed", now=True, message=message)
                if kept is not None:
                    kept.finish("cancelled" if is_stop else "failed", error=type(error).__name__, message=message)
                raise
            live.tell("done", now=True)
        return result

    def start(self) -> Running:
        """Run in the background; `add` systems meanwhile, look at the interim result, stop."""
        return Running(self)

    def estimate(self, *, cancelled: Callable[[], bool] = never) -> Estimate:
        """Say what `run` would still ask of language models, and what that is likely to cost; no model is asked.

        Documents are cut, embedded and searched, and what that gives is kept, as in `run`.

        Args:
            cancelled: As in `run`.

        Raises:
            OperationCancelled, ResultCacheError, EmbeddingError: As `run` does.
            InputError: There is a model where it cannot be replaced.
        """
        found = Estimate()
        measures = [dry(measure, found) for measure in self.measures]
        results = DryResults(self.result_cache, found)
        calls = DryCalls(results, found, cancelled=cancelled)
        corpus = records(self.dataset.documents)
        done: list[str] = []
        held: dict[str, ChunkedCorpus] = {}
        with CellsBar(self._progress, f"{self.name}, dry run") as bar, contextlib.closing(results):
            live = ProgressReporter(self.name, None, bar, questions=len(self.dataset.queries))
            live.tell("running", systems=len(self.systems))
            while (system := self._next(done, held)) is not None:
                found.system = system.name
                without = dry(system, found)
                cut = self._cut_by(without, held, results, cancelled)
                self._evaluate(without, measures, cut, corpus, results, calls, live, cancelled)
                done.append(system.name)
        return found

    def _next(self, done: Sequence[str], held: Mapping[str, ChunkedCorpus]) -> System | None:
        """The next system to run: with the cut that is held, if there is one, so that vectors are in memory once."""
        with self._lock:
            waiting = [system for system in self.systems if system.name not in done]
        if not waiting:
            return None
        for system in waiting:
            if held and self._cut_key(system) in held:
                return system
        return waiting[0]

    def _evaluate(
        self,
        system: System,
        measures: Sequence[Measure],
        cut: ChunkedCorpus,
        corpus: Documents,
        results: ResultCache,
        calls: Calls,
        live: ProgressReporter,
        cancelled: Callable[[], bool],
    ) -> Outcome:
        return Evaluation(
            system, self.dataset, measures, cut=cut, corpus=corpus, results=results, calls=calls, live=live,
            cancelled=cancelled, timed=self._timed and not isinstance(calls, DryCalls),
        ).run()  # fmt: skip

    def _embedder(self, system: System) -> CachedEmbedder:
        return self._embedders.setdefault(id(system.embedder), CachedEmbedder(system.embedder, self._cache))

    def _cut_key(self, system: System) -> str:
        return hash_values(identity(system.chunker), identity(self._embedder(system)))

    def _cut_by(
        self, system: System, held: dict[str, ChunkedCorpus], results: ResultCache, cancelled: Callable[[], bool]
    ) -> ChunkedCorpus:
        key = self._cut_key(system)
        if key not in held:
            held.clear()  # and its vectors
            embedder = self._embedder(system)
            held[key] = cut(self.dataset.documents, system.chunker, embedder, results, cancelled=cancelled)
        return held[key]

    # ---------------------------------------------------------------------------------- the store

    def _begin_run(self) -> Run | None:
        if self._runs is None:
            return None
        return self._runs.create(
            name=self.name,
            kind="experiment",
            settings={
                "dataset": self.dataset.name,
                "measures": [described(measure) for measure in self.measures],
                "baseline": self.baseline,
                "systems": {
                    system.name: {
                        field.name: described(getattr(system, field.name))
                        for field in dataclasses.fields(system)
                        if field.name != "label"
                    }
                    for system in self.systems
                },
            },
            data={self.dataset.name: self.dataset.digest()},
        )

    def _end_run(self, run: Run, result: Result) -> None:
        best = result.systems.iloc[0]
        tables = {"systems": result.systems, "queries": result.queries}
        if len(result.names) > 1 and self.baseline in result.names:
            tables["comparisons"] = result.compare()
        tables |= {
            name: table
            for name, table in (
                ("errors", result.errors), ("judgements", result.judgements), ("follow_ups", result.follow_ups)
            )
            if len(table)
        }  # fmt: skip
        run.record(best=best["system"], **{str(m): float(best[str(m)]) for m in self.measures}, **tables)
        run.finish()


class Running:
    """An experiment that runs in a thread of its own.

    Attributes:
        experiment: The experiment.
        interim: What was measured so far; None before it has begun.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.interim: Result | None = None
        self._stop = threading.Event()
        self._adding = threading.Lock()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = self._begun()

    @property
    def state(self) -> Literal["running", "paused", "stopped", "failed", "done"]:
        """What it does; "paused" for want of budget."""
        if self._thread.is_alive():
            return "running"
        match self._error:
            case None:
                return "done"
            case BudgetError():
                return "paused"
            case OperationCancelled():
                return "stopped"
            case _:
                return "failed"

    def __repr__(self) -> str:
        return f"Running({self.experiment!r}: {self.state})"

    def _begun(self) -> threading.Thread:
        self._stop.clear()
        self._ended = False
        self._error = None
        thread = threading.Thread(target=self._run, name=f"experiment {self.experiment.name}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            while not self._ended:
                names = self.experiment.run(cancelled=self._stop.is_set, on_system=self._keep).names
                with self._adding:  # a system may have come while the run was written down
                    self._ended = all(system.name in names for system in self.experiment.systems)
        except BaseException as error:
            self._error = error

    def _keep(self, result: Result) -> None:
        self.interim = result

    def add(self, systems: System | Iterable[System] | Mapping[str, System]) -> None:
        """See `Experiment.add`. One that is done goes on with them."""
        with self._adding:
            self.experiment.add(systems)
            is_done = self._ended
        if is_done:
            self._thread.join()
            self.resume()

    def stop(self) -> None:
        """Stop at once, and keep what was computed."""
        self._stop.set()
        self._thread.join()

    def resume(self) -> None:
        """Go on after `stop`, a failure or a pause (raise the budget first); nothing is computed twice."""
        if not self._thread.is_alive():
            self._thread = self._begun()

    def result(self, *, timeout_seconds: float | None = None) -> Result:
        """Wait for the result.

        Raises:
            TimeoutError: It is not there yet.
            BudgetError: It is paused.
            OperationCancelled: It was stopped.
            RagkitError: What `Experiment.run` raised.
        """
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise TimeoutError("The experiment is still running; ask again, or stop() it.")
        if self._error is not None:
            raise self._error
        assert self.interim is not None  # it ended without an error
        return self.interim
