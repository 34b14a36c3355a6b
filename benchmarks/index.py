"""Compare indexing with the bare model, LangChain and LlamaIndex; every figure has a required limit.

Run it from the repository root: ``make bench-index [ROWS="cold unchanged ..."] [FULL=1]``. It prints a table and
fails if a limit is missed. Throughput is compared as a ratio within the same run, so that it is comparable between
machines: each contestant (`benchmarks.peers`) is a separate process with its model loaded. They take turns with one
slice of a corpus each, in a different order every round, never two at a time. All embed with the same model files on
the same number of threads, after a warm-up. The median round counts.

cold       A new index of SciFact (short texts) and of service-public.fr (long pages), in chunks per second of the
           whole call. ragkit reads a corpus.jsonl, divides it into chunks, embeds, and writes vectors, records and
           its (empty) embedding cache, with its defaults. The others get the texts that ragkit embeds, already
           divided: ``raw`` in one call of encode, which sorts them by length and stores nothing (in batches of 32,
           its default, to which the limit applies, and of 16, ragkit's on a CPU); the peers in document order,
           as one Document or TextNode each, in batches of their default sizes, to which the limit applies, and in
           larger ones. FULL=1 uses the whole sets once instead of three slices of about 1,500 chunks.
unchanged  A folder of 5,000 files indexed again without changes. LangChain reads the same files, undivided. The first
           index used free embeddings, because indexing an unchanged folder embeds nothing.
edited     One of 5,000 files edited, twenty sections long: only changed chunks are embedded.
cached     New processes that divide the same texts into chunks of another size, and back: cached texts are not
           embedded again.
memory     Peak memory (VmHWM) of a process that indexes 100,000 files of a kilobyte, compared with 1,000.
large      `retrieve` over 100,000 passages, 200 questions, each once, including their embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.corpora import SHARED, long_file, slices, small_files, synthetic_files
from benchmarks.large import QUESTIONS, ask
from benchmarks.peers import Job, Outcome
from benchmarks.scenes import alone, change, cut, memory, recut
from benchmarks.servers import end_children, prepare

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"

MIN_TIMES_RAW = 0.95
MIN_TIMES_LANGCHAIN = 1.15
MAX_UNCHANGED_SECONDS = 1.0
MAX_EDITED_SECONDS = 1.0
MAX_GROWTH_MB = 200.0
MAX_QUERY_MS = 20.0

FULL = os.environ.get("FULL", "0") not in ("", "0")
ROUNDS = 3
SLICE_CHARACTERS = 1_200_000
WARM_UP_CHARACTERS = 30_000
DOCUMENTS = 5_000
MANY_DOCUMENTS = 100_000
FEW_DOCUMENTS = 1_000
START_SECONDS = 180.0


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; ``ok`` is None if there is no limit."""

    row: str
    figure: str
    bar: str = ""
    ok: bool | None = None

    @property
    def verdict(self) -> str:
        return {None: "", True: "ok", False: "MISSED"}[self.ok]


class Contestant:
    """A process of `benchmarks.peers`, which runs its jobs while the others wait."""

    def __init__(self, name: str, folder: Path) -> None:
        python = PEERS if name in ("langchain", "llamaindex") else Path(sys.executable)
        self.name = name
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers", name],
            cwd=ROOT,
            env=os.environ | {"RAGKIT_CACHE_DIR": str(folder / f"cache-{name}"), "ANONYMIZED_TELEMETRY": "False"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("w"),
            text=True,
        )
        self._log = folder / f"{name}.log"
        self.made_of: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.name} ended: {self._log.read_text()[-2_000:]}")
        return json.loads(line)

    def do(self, job: Job) -> Outcome:
        if self._process.stdin is None:
            raise RuntimeError(f"{self.name} has no input")
        self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self._process.stdin.flush()
        return Outcome(**self._answer())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def contestants(*names: str, folder: Path) -> Iterator[dict[str, Contestant]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:
            found[name] = Contestant(name, folder)
            stack.callback(found[name].end)
        made_of = {name: each.made_of for name, each in found.items()}
        if len({json.dumps(parts) for parts in made_of.values()}) > 1:
            print(f"The contestants have different versions: {made_of}", file=sys.stderr)
        yield found


# --------------------------------------------------------------------------------------------------------------- cold


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A configuration of a contestant."""

    label: str
    name: str
    batch: int | None = None


ENTRIES = (
    Entry("raw encode", "raw"),
    Entry("raw encode, batches of 16", "raw", 16),
    Entry("ragkit", "ragkit"),
    Entry("LangChain", "langchain"),
    Entry("LangChain, batches of 1,024", "langchain", 1_024),
    Entry("LlamaIndex", "llamaindex"),
    Entry("LlamaIndex, batches of 32", "llamaindex", 32),
)


def cold(folder: Path) -> Iterator[Figure]:
    for name in ("scifact", "servicepublic_fr"):
        place = folder / name
        place.mkdir()
        yield from _cold(name, place)


def _cold(name: str, folder: Path) -> Iterator[Figure]:
    warm_up = next(slices(name, characters=WARM_UP_CHARACTERS, into=_made(folder / "warm")))
    measured = slices(name, characters=None if FULL else SLICE_CHARACTERS, into=_made(folder / "slices"))
    corpora = [warm_up, *(corpus for corpus, _ in zip(measured, range(1 if FULL else ROUNDS), strict=False))]
    sources: list[tuple[Path, Path]] = []
    for number, texts in enumerate(alone(cut, [str(corpus) for corpus in corpora], str(folder / "cut"))):
        passages = folder / f"passages-{number}.json"
        passages.write_text(json.dumps(texts), encoding="utf-8")
        sources.append((corpora[number], passages))
    rates: dict[str, list[float]] = {entry.label: [] for entry in ENTRIES}
    busy: dict[str, list[float]] = {entry.label: [] for entry in ENTRIES}
    chunks = 0
    with contestants("raw", "ragkit", "langchain", "llamaindex", folder=folder) as found:
        for number, (corpus, passages) in enumerate(sources):
            count = len(json.loads(passages.read_text(encoding="utf-8")))
            turn = number % len(ENTRIES)
            for entry in (*ENTRIES[turn:], *ENTRIES[:turn]):
                into = folder / f"index-{number}-{ENTRIES.index(entry)}"
                source = corpus if entry.name == "ragkit" else passages
                outcome = found[entry.name].do(Job(str(source), str(into), batch=entry.batch))
                if number:
                    say(f"{name} {number}, {entry.label}: {count} chunks, {outcome.seconds:.1f} s")
                    rates[entry.label].append(count / outcome.seconds)
                    busy[entry.label].append(1_000 * outcome.cpu_seconds / count)
            chunks += count if number else 0

    def times(mine: str, theirs: str) -> float:
        """Return the median of the ratios per round, because other load in a round affects both."""
        return statistics.median(a / b for a, b in zip(rates[mine], rates[theirs], strict=True))

    for entry in ENTRIES:
        ratio = times("ragkit", entry.label)
        least = {"raw encode": MIN_TIMES_RAW, "LangChain": MIN_TIMES_LANGCHAIN}.get(entry.label)
        rate, cpu = statistics.median(rates[entry.label]), statistics.median(busy[entry.label])
        figure = f"{rate:.1f} chunks/s ({cpu:.1f} ms CPU each)"
        if entry.label == "ragkit":
            yield Figure(f"cold, {name}: ragkit", f"{figure}; {chunks:,} chunks in {len(sources) - 1} rounds")
            continue
        yield Figure(
            f"cold, {name}: {entry.label}",
            f"{figure}; ragkit: {ratio:.2f} x",
            "" if least is None else f">= {least:g} x",
            None if least is None else ratio >= least,
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# -------------------------------------------------------------------------------------------- unchanged, edited, cached


def unchanged(folder: Path) -> Iterator[Figure]:
    small_files(_made(folder / "documents"), documents=DOCUMENTS)
    took: dict[str, list[float]] = {"ragkit": [], "langchain": []}
    with contestants(*took, folder=folder) as found:
        for each in found.values():
            each.do(Job(str(folder / "documents"), str(folder / each.name), model="hash"))
        for turn in range(5):
            for each in list(found.values())[:: 1 if turn % 2 else -1]:
                outcome = each.do(Job(str(folder / "documents"), str(folder / each.name), model="hash"))
                if (outcome.written, outcome.unchanged) != (0, DOCUMENTS):
                    raise RuntimeError(f"{each.name} found something to do: {outcome}")
                took[each.name].append(outcome.seconds)
    ours, theirs = (statistics.median(took[name]) for name in took)
    yield Figure(
        f"unchanged, {DOCUMENTS:,} files",
        f"{ours:.2f} s",
        f"< {MAX_UNCHANGED_SECONDS:g} s",
        ours < MAX_UNCHANGED_SECONDS,
    )
    yield Figure(
        "unchanged, LangChain", f"{theirs:.2f} s; ragkit: {theirs / ours:.2f} x as fast", ">= 1 x", theirs >= ours
    )


def edited(folder: Path) -> Iterator[Figure]:
    small_files(_made(folder / "documents"), documents=DOCUMENTS - 1)
    long_file(folder / "documents" / "long.md")
    seconds, embedded, known, new, chunks = alone(change, str(folder / "documents"), str(folder / "index"))
    yield Figure(
        f"edited, one of {DOCUMENTS:,} files",
        f"{seconds:.2f} s",
        f"< {MAX_EDITED_SECONDS:g} s",
        seconds < MAX_EDITED_SECONDS,
    )
    yield Figure(
        "edited, chunks embedded",
        f"{embedded} of the document's {chunks}, {new} of them new, {known} known before",
        "new ones",
        embedded == new and known == 0,
    )


def cached(folder: Path) -> Iterator[Figure]:
    source = next(slices("scifact", characters=600_000, into=_made(folder / "documents")))
    first, passages = alone(recut, str(source), str(folder / "index"), None)
    smaller, smaller_passages = alone(recut, str(source), str(folder / "index"), 128)
    back, passages_again = alone(recut, str(source), str(folder / "index"), None)
    if passages != passages_again:
        raise RuntimeError("the same chunker has divided the same texts differently")
    seen = set(first)
    again = sum(text in seen for text in smaller)
    found = len(seen & set(smaller_passages))
    yield Figure(
        "cached, another chunk size",
        f"{len(smaller)} of {len(smaller_passages)} embedded; {again} of the {found} that were known",
        "0 known",
        again == 0 and len(smaller) == len(set(smaller_passages) - seen),
    )
    yield Figure("cached, back again", f"{len(back)} of {len(passages)} embedded", "0", not back)


# -------------------------------------------------------------------------------------------------------- memory, large


def at_scale(folder: Path) -> Iterator[Figure]:
    peaks = []
    for documents in (FEW_DOCUMENTS, MANY_DOCUMENTS):
        source = _made(folder / f"documents-{documents}")
        synthetic_files(source, documents=documents)
        peak, seconds, chunks = alone(memory, str(source), str(folder / f"index-{documents}"))
        say(f"{documents} documents, {chunks} chunks: {peak:.0f} MB, {seconds:.0f} s")
        peaks.append(peak)
    growth = peaks[1] - peaks[0]
    yield Figure(
        f"memory, {MANY_DOCUMENTS:,} documents",
        f"{growth:.0f} MB more than with {FEW_DOCUMENTS:,} ({peaks[1]:.0f} and {peaks[0]:.0f} MB; "
        f"{chunks:,} chunks, {seconds:.0f} s)",
        f"< {MAX_GROWTH_MB:g} MB",
        growth < MAX_GROWTH_MB,
    )


def large(folder: Path) -> Iterator[Figure]:
    passages, found, embedding = alone(ask, str(folder), MANY_DOCUMENTS)
    for name, (median, worst) in found.items():
        has_bar = name.startswith("Hybrid")
        yield Figure(
            f"large, {name.partition('(dense_weight')[0]}",
            f"p50 {median:.1f} ms, p99 {worst:.1f} ms",
            f"p50 < {MAX_QUERY_MS:g} ms" if has_bar else "",
            median < MAX_QUERY_MS if has_bar else None,
        )
    yield Figure(
        "large, embedding a question", f"p50 {embedding:.1f} ms ({passages:,} passages, {QUESTIONS} questions)"
    )


ROWS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "cold": cold,
    "unchanged": unchanged,
    "edited": edited,
    "cached": cached,
    "memory": at_scale,
    "large": large,
}


def say(line: str) -> None:
    """Print progress."""
    print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> int:
    chosen = sys.argv[1:] or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        print(f"There is no row '{min(unknown)}'. The rows are: {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    if not SHARED.is_dir():
        print(
            f"The judged sets are not at {SHARED}: set RAGKIT_SHARED to the folder that holds datasets/.",
            file=sys.stderr,
        )
        return 2
    if {"cold", "unchanged"} & set(chosen) and not PEERS.exists():
        print("LangChain and LlamaIndex are not installed. Run: make bench-index", file=sys.stderr)
        return 2
    prepare()
    table = Table("what", "figure", "bar", "")
    held = True
    try:
        for name in chosen:
            with tempfile.TemporaryDirectory(prefix="ragkit-bench-", ignore_cleanup_errors=True) as folder:
                os.environ["RAGKIT_CACHE_DIR"] = f"{folder}/cache"  # empty, instead of the user's cache
                for figure in ROWS[name](Path(folder)):
                    say(f"{figure.row}: {figure.figure} {figure.verdict}")
                    table.add_row(figure.row, figure.figure, figure.bar, figure.verdict)
                    held &= figure.ok is not False
    except KeyboardInterrupt:
        return 130
    finally:
        end_children()
    Console(width=140).print(table)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
