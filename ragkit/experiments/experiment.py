"""Compare RAG systems on a dataset with relevance judgements, resume after a stop, and test differences.

    experiment = Experiment(
        load_dataset("data/questions", corpus="data/handbook"),
        System(retriever=choose(BM25(), Dense(), Hybrid())),
        measures=["nDCG@10", "R@100"],
        baseline="BM25()",
    )
    experiment.run()

Results are cached on disk (`ragkit.experiments.stages`) and shared by all experiments with the same store: what an
interrupted run, another experiment or an earlier measure computed is not computed again. Progress and the row of each
finished system are published to live listeners.
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
from ragkit.experiments.stages import ChunkedCorpus, chunk_documents, records
from ragkit.experiments.system import System, described, expand_systems
from ragkit.hashing import hash_values
from ragkit.live.publisher import Publisher, default_publisher
from ragkit.progress_bar import StageProgressBar
from ragkit.retrieval.corpus import Documents
from ragkit.runs.run import Run
from ragkit.runs.store import RunStore


class Experiment:
    """Compare systems on a dataset with relevance judgements.

    Args:
        dataset: Documents, questions and judgements; see `ragkit.evaluation.load_dataset`.
        systems: One or several systems, which may contain choices; a dict gives them names. See
            `ragkit.experiments.System`.
        measures: Measures of rankings in the notation of ir_measures (``"nDCG@10"``, ``"R@100"``), of gold spans
            (``"SpanRecall@5"``), of answers (``"CitationRecall"``, ``"F1"``, ``"Abstention"``, ...: see
            `ragkit.evaluation.answer_measures`), or LLM judges (``Faithfulness(llm)``). Answers are generated only if
            a measure needs them.
        baseline: The name of the system that the others are compared with; the first system if None.
        name: The name that listeners see; the dataset's name if None.
        store: Folder for cached results (``results.db``) and for a record of each `run` (`ragkit.runs`). Experiments
            with the same store share results.
        cache: The embedding cache; the user's default cache if None, no cache if False.
        publisher: Publishes progress; the process's default publisher if None.
        progress: Whether to show a progress bar.
        max_concurrency: The maximum number of concurrent calls to language models.
        record: Whether each `run` is recorded in the store.
        timed: Whether to measure the retrieval latency of single questions.

    Raises:
        InputError: There is no system, two systems have the same name, a measure does not exist, the dataset has no
            gold data for a measure, or the baseline is not one of the systems.
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
                f"Two measures have the same name: {', '.join(map(str, self.measures))}. Run the second judge in a "
                "separate experiment; cached results are reused."
            )
        check_gold(self.measures, dataset)
        self.systems = expand_systems(systems)
        names = [system.name for system in self.systems]
        if baseline is not None and baseline not in names:
            raise InputError(f"The baseline '{baseline}' is not one of the systems: {'; '.join(names)}.")
        self.baseline = baseline or names[0]
        self.result_cache = ResultCache(Path(store) / "results.db")
        self.publisher = publisher or default_publisher()
        self._cache = cache
        self._progress = progress
        require_count("max_concurrency", max_concurrency)
        self._max_concurrency = max_concurrency
        self._timed = timed
        self._runs = RunStore(store) if record else None
        self._lock = threading.Lock()  # guards self.systems: another thread may add to it
        self._embedders: dict[int, CachedEmbedder] = {}

    def __repr__(self) -> str:
        return (
            f"Experiment({self.name!r}: {len(self.systems)} systems, {len(self.dataset.queries)} questions, "
            f"{', '.join(map(str, self.measures))})"
        )

    def add(self, systems: System | Iterable[System] | Mapping[str, System]) -> None:
        """Add systems; a run in progress includes them.

        Raises:
            InputError: A name is already in use.
        """
        with self._lock:
            self.systems += expand_systems(systems, taken=[system.name for system in self.systems])

    def run(
        self, *, cancelled: Callable[[], bool] = never, on_system: Callable[[Result], object] = lambda result: None
    ) -> Result:
        """Compute the missing results and evaluate all systems.

        Ctrl-C (or a kernel interrupt) stops the run; results are kept, and the next call resumes.

        Args:
            cancelled: Polled several times a second; True stops the run.
            on_system: Called with the interim result at the start and after each system.

        Raises:
            BudgetError: The next call to a model could cost more than the remaining budget. Results are kept: raise
                the budget and run again.
            OperationCancelled: ``cancelled`` returned True.
            ResultCacheError, EmbeddingError, InputError: See `ragkit.experiments.stages`.
            LLMError: The model's server rejects the API key, or no call succeeds at all. Single calls that fail are
                listed in `Result.errors` instead.
        """
        result = Result(self.dataset, self.measures, self.baseline)
        on_system(result)
        questions = len({query.text for query in self.dataset.queries})
        with StageProgressBar(self._progress, self.name) as bar:
            reporter = ProgressReporter(self.name, self.publisher, bar, questions=questions)
            run: Run | None = None
            try:
                run = self._begin_run()
                reporter.report("running", systems=len(self.systems), now=True)
                results = self.result_cache
                calls = Calls(
                    results, max_concurrency=self._max_concurrency, cancelled=cancelled, on_progress=reporter.working
                )
                corpus = records(self.dataset.documents)
                held: dict[str, ChunkedCorpus] = {}
                while (system := self._next(result.names, held)) is not None:
                    reporter.report("running", systems=len(self.systems))
                    chunked = self._chunked(system, held, results, cancelled)
                    result.add(
                        system,
                        self._evaluate(system, self.measures, chunked, corpus, results, calls, reporter, cancelled),
                    )
                    reporter.finished(result.row(system.name), result.leaderboard())
                    on_system(result)
                result.interim = False
                if run is not None:
                    self._end_run(run, result)
            except BaseException as error:
                # User-defined components can raise anything; listeners must see the failure.
                is_stop = isinstance(error, KeyboardInterrupt | OperationCancelled | BudgetError)
                message = str(error) or ("Interrupted. Run it again to resume." if is_stop else type(error).__name__)
                reporter.report("cancelled" if is_stop else "failed", now=True, message=message)
                if run is not None:
                    run.finish("cancelled" if is_stop else "failed", error=type(error).__name__, message=message)
                raise
            reporter.report("done", now=True)
        return result

    def start(self) -> Running:
        """Run in a background thread; the returned `Running` can add systems, show interim results and stop."""
        return Running(self)

    def estimate(self, *, cancelled: Callable[[], bool] = never) -> Estimate:
        """Estimate the number and cost of the LLM calls that `run` would still make, without making any.

        Documents are chunked, embedded and searched as in `run`, and these results are cached.

        Args:
            cancelled: As in `run`.

        Raises:
            OperationCancelled, ResultCacheError, EmbeddingError: As in `run`.
            InputError: A component holds a language model where it cannot be replaced by a counter.
        """
        estimate = Estimate()
        measures = [dry(measure, estimate) for measure in self.measures]
        results = DryResults(self.result_cache, estimate)
        calls = DryCalls(results, estimate, cancelled=cancelled)
        corpus = records(self.dataset.documents)
        done: list[str] = []
        held: dict[str, ChunkedCorpus] = {}
        with StageProgressBar(self._progress, f"{self.name}, dry run") as bar, contextlib.closing(results):
            reporter = ProgressReporter(self.name, None, bar, questions=len(self.dataset.queries))
            reporter.report("running", systems=len(self.systems))
            while (system := self._next(done, held)) is not None:
                estimate.system = system.name
                counting = dry(system, estimate)
                chunked = self._chunked(counting, held, results, cancelled)
                self._evaluate(counting, measures, chunked, corpus, results, calls, reporter, cancelled)
                done.append(system.name)
        return estimate

    def _next(self, done: Sequence[str], held: Mapping[str, ChunkedCorpus]) -> System | None:
        """Return the next system to run, preferring one that reuses the chunked corpus in memory."""
        with self._lock:
            waiting = [system for system in self.systems if system.name not in done]
        if not waiting:
            return None
        for system in waiting:
            if held and self._chunking_key(system) in held:
                return system
        return waiting[0]

    def _evaluate(
        self,
        system: System,
        measures: Sequence[Measure],
        chunked: ChunkedCorpus,
        corpus: Documents,
        results: ResultCache,
        calls: Calls,
        reporter: ProgressReporter,
        cancelled: Callable[[], bool],
    ) -> Outcome:
        return Evaluation(
            system, self.dataset, measures, chunked=chunked, corpus=corpus, results=results, calls=calls,
            reporter=reporter, cancelled=cancelled, timed=self._timed and not isinstance(calls, DryCalls),
        ).run()  # fmt: skip

    def _embedder(self, system: System) -> CachedEmbedder:
        return self._embedders.setdefault(id(system.embedder), CachedEmbedder(system.embedder, self._cache))

    def _chunking_key(self, system: System) -> str:
        return hash_values(identity(system.chunker), identity(self._embedder(system)))

    def _chunked(
        self, system: System, held: dict[str, ChunkedCorpus], results: ResultCache, cancelled: Callable[[], bool]
    ) -> ChunkedCorpus:
        key = self._chunking_key(system)
        if key not in held:
            held.clear()  # frees the vectors of the previous corpus
            embedder = self._embedder(system)
            held[key] = chunk_documents(self.dataset.documents, system.chunker, embedder, results, cancelled=cancelled)
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
    """An experiment that runs in a background thread.

    Attributes:
        experiment: The experiment.
        interim: The interim result; None before the run has started.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.interim: Result | None = None
        self._stop = threading.Event()
        self._adding = threading.Lock()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = self._started()

    @property
    def state(self) -> Literal["running", "paused", "stopped", "failed", "done"]:
        """The state of the run; "paused" means that the budget is spent."""
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

    def _started(self) -> threading.Thread:
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
                with self._adding:  # a system may have been added while the run was being recorded
                    self._ended = all(system.name in names for system in self.experiment.systems)
        except BaseException as error:
            self._error = error

    def _keep(self, result: Result) -> None:
        self.interim = result

    def add(self, systems: System | Iterable[System] | Mapping[str, System]) -> None:
        """Add systems, as in `Experiment.add`; an experiment that is done starts again to run them."""
        with self._adding:
            self.experiment.add(systems)
            is_done = self._ended
        if is_done:
            self._thread.join()
            self.resume()

    def stop(self) -> None:
        """Stop the run and wait until it has stopped; results are kept."""
        self._stop.set()
        self._thread.join()

    def resume(self) -> None:
        """Resume after `stop`, a failure or a pause (raise the budget first); nothing is computed twice."""
        if not self._thread.is_alive():
            self._thread = self._started()

    def result(self, *, timeout_seconds: float | None = None) -> Result:
        """Wait for the result.

        Raises:
            TimeoutError: The experiment is still running after ``timeout_seconds``.
            BudgetError: The experiment is paused.
            OperationCancelled: The experiment was stopped.
            RagkitError: Whatever `Experiment.run` raised.
        """
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise TimeoutError("The experiment is still running. Call result() again later, or stop() it.")
        if self._error is not None:
            raise self._error
        assert self.interim is not None
        return self.interim
