"""Render the result of an experiment as one self-contained HTML page, without scripts or network requests.

The page has a light, a dark and a print style. The template is `report.html` (Jinja, with autoescape). Names of
systems, questions, settings and messages are untrusted: control characters and bidirectional overrides are shown as
escapes, and the page's Content-Security-Policy forbids scripts and all external resources.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from lxml import etree
from markupsafe import Markup

from ragkit.evaluation import plots
from ragkit.evaluation.dataset import Dataset, Query
from ragkit.evaluation.significance import compare, interval
from ragkit.files import refused, replacing
from ragkit.runs.provenance import Provenance, find_provenance
from ragkit.runs.run import now
from ragkit.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05  # significance level: a difference with a larger p is not claimed
_MAX_SYSTEMS = 10  # shown question by question
_MAX_QUESTIONS = 20
_MAX_ERRORS = 500
_COSTS = ("latency_ms", "answer_ms", "tokens", "cost")
_HEADINGS = {"latency_ms": "retrieval per question (ms)", "answer_ms": "answer per question (ms)"}
_TESTS = ("t", "wilcoxon", "randomisation")
_COLOURS = {plots.INK: "currentColor", plots.GREY: "var(--soft)", plots.PALE: "var(--line)", "#ffffff": "var(--paper)"}
_COLOUR = re.compile("|".join(_COLOURS))
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_REFERENCE = re.compile(r"(url\(|^)#")
_SVG = "{http://www.w3.org/2000/svg}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The content of a page.

    Attributes:
        dataset: The dataset.
        measures: The names of the measures; the first one ranks the systems.
        baseline: The system that the others are compared with; it may be missing while ``interim`` is True.
        interim: Whether systems are still running.
        systems: One row per system, best first: ``system``, the mean of each measure, and any other figures.
            ``latency_ms``, ``answer_ms``, ``tokens`` and ``cost`` are also plotted.
        queries: ``system``, ``query_id``, ``measure``, ``value``; NaN where there is no value.
        errors: ``system``, ``query_id``, ``stage``, ``error``, ``message``; None if errors are not recorded.
        settings: System name -> its configuration.
        provenance: The code, packages and machine that computed the result.
    """

    dataset: Dataset
    measures: Sequence[str]
    baseline: str
    interim: bool
    systems: pd.DataFrame
    queries: pd.DataFrame
    errors: pd.DataFrame | None
    settings: Mapping[str, Any]
    provenance: Provenance = dataclasses.field(default_factory=find_provenance)

    def per_query(self, measure: str) -> pd.DataFrame:
        """Return one row per query that the measure applies to and one column per system, best first."""
        chosen = self.queries[self.queries["measure"] == measure]
        wide = chosen.pivot(index="query_id", columns="system", values="value")
        return wide.reindex(columns=list(self.systems["system"])).astype("float64")


def write_page(found: Findings, path: str | Path, *, title: str | None = None) -> Path:
    """Write the page atomically.

    Args:
        found: The content.
        path: The file; its folder is created if it does not exist.
        title: The heading; made from the dataset's name if None.

    Returns:
        The path of the file.

    Raises:
        RagkitError: The file cannot be written.
    """
    path = Path(path).expanduser()
    text = _template().render(_parts(found, title or f"Experiment on {found.dataset.name}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error) from error
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup is trusted
    )
    return environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))


def _parts(found: Findings, title: str) -> dict[str, Any]:
    """Return the variables of the template."""
    names = list(found.systems["system"])
    compared = found.baseline in names and len(names) > 1
    wides = {measure: found.per_query(measure) for measure in found.measures}
    tables = {m: compare(wide, baseline=found.baseline).to_dict("records") for m, wide in wides.items() if compared}
    shared, varied, settings = _settings([found.settings[name] for name in names])
    return {
        "title": title,
        "date": now(),
        "found": found,
        "names": names,
        "numbers": {name: number for number, name in enumerate(names, start=1)},
        "asked": _asked(found.dataset),
        "leaderboard": _leaderboard(found, wides),
        "comparisons": {
            measure: [(row, _claim(row, measure), [_p_pair(row, test) for test in _TESTS]) for row in rows]
            for measure, rows in tables.items()
        },
        "figures": _figures(found, compared=compared),
        "differing": _differing(found.dataset.queries, wides[found.measures[0]].iloc[:, :_MAX_SYSTEMS]),
        "errors": _errors(found.errors),
        "most_errors": _MAX_ERRORS,
        "shared": shared,
        "varied": varied,
        "settings": settings,
        "number": _number,
    }


# ------------------------------------------------------------------------------------------ text


def _number(value: float, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return "–" if math.isnan(value) else f"{value:{plus}.3f}" if abs(value) < 100 else f"{value:{plus},.0f}"


def _p(value: float) -> str:
    relation = "= –" if math.isnan(value) else "< 0.001" if value < 0.001 else f"= {value:.3f}"
    return f"p {relation}".replace(" ", "\N{NO-BREAK SPACE}")


def _p_pair(row: Mapping[str, Any], test: str) -> str:
    """Return the p of one test, and the p after Holm's correction."""
    return " → ".join(
        _p(row[f"p_{test}{holm}"]).removeprefix("p\N{NO-BREAK SPACE}").removeprefix("=\N{NO-BREAK SPACE}")
        for holm in ("", "_holm")
    )


def _claim(row: Mapping[str, Any], measure: str) -> str:
    """Return a sentence that compares a system with the baseline; it claims only a significant difference."""
    system, baseline, p = row["system"], row["baseline"], row["p_randomisation_holm"]
    if math.isnan(p):
        return f"{system} and {baseline} cannot be compared by {measure}: fewer than two questions have both values."
    tested = f"{_p(p)} (randomisation, Holm; {row['n']} questions)"
    sign = 1 if row["difference"] > 0 else -1
    if p < ALPHA:
        ends = sorted(sign * row[end] for end in ("low", "high"))
        return (
            f"{system} is {'above' if sign > 0 else 'below'} {baseline} in {measure} by "
            f"{_number(abs(row['difference']))} [{', '.join(map(_number, ends))}], {tested}."
        )
    low, high = (_number(row[end], sign=True) for end in ("low", "high"))
    return (
        f"No difference between {system} and {baseline} in {measure} is shown: "
        f"{_number(row['difference'], sign=True)} [{low}, {high}], {tested}."
    )


def _asked(dataset: Dataset) -> list[tuple[str, str]]:
    """Return the facts about the dataset, as pairs of name and value."""
    queries = dataset.queries
    facts = [
        ("documents", f"{len(dataset.documents):,} ({_languages(d.language for d in dataset.documents)})"),
        ("questions", f"{len(queries):,} ({_languages(query.language for query in queries)})"),
        ("judgements", f"{sum(map(len, dataset.qrels.values())):,}"),
    ]
    for name, count in (
        ("gold spans", sum(map(len, dataset.spans.values()))),
        ("questions with gold answers", sum(bool(query.answers) for query in queries)),
        ("questions without an answer", sum(query.answerable is False for query in queries)),
        ("synthetic questions", sum(query.synthetic for query in queries)),
    ):
        if count:
            facts.append((name, f"{count:,}"))
    return [("name", dataset.name), *facts, ("digest", dataset.digest())]


def _languages(languages: Iterator[str]) -> str:
    counts = Counter(languages).most_common()
    return ", ".join(language if len(counts) == 1 else f"{language} {count:,}" for language, count in counts)


# ---------------------------------------------------------------------------------------- tables


def _leaderboard(found: Findings, wides: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the means with their intervals, and the other columns of the table of systems."""
    facts = [column for column in found.systems.columns if column not in ("system", *found.measures)]
    facts = [column for column in facts if found.systems[column].notna().any()]
    rows = []
    for row in found.systems.to_dict("records"):
        measured = []
        for measure, wide in wides.items():
            values = wide[row["system"]]
            low, high = interval(values)
            count = int(values.count())
            of = f"{count} of {len(values)} questions" if count < len(values) else ""
            measured.append((_number(row[measure]), f"[{_number(low)}, {_number(high)}]", of))
        rows.append((row["system"], measured, [_fact(row[fact]) for fact in facts]))
    return {"facts": [_HEADINGS.get(fact, fact) for fact in facts], "rows": rows}


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _differing(queries: Sequence[Query], wide: pd.DataFrame) -> list[tuple[Query, list[str]]]:
    """Return the questions on which the systems differ most, each with its values."""
    by_id = {query.id: query for query in queries}
    apart = (wide.max(axis=1) - wide.min(axis=1)).sort_values(ascending=False, kind="stable")
    chosen = apart[apart > 0].index[:_MAX_QUESTIONS]
    return [(by_id[query_id], [_number(value) for value in wide.loc[query_id]]) for query_id in chosen]


def _errors(errors: pd.DataFrame | None) -> dict[str, Any]:
    """Return counts of all errors by kind, and the first errors in full."""
    rows = [] if errors is None else errors.astype(object).to_dict("records")
    kinds = Counter((row["system"], row["stage"], row["error"]) for row in rows)
    return {"total": len(rows), "kinds": list(kinds.items()), "rows": rows[:_MAX_ERRORS]}


def _settings(systems: Sequence[Any]) -> tuple[list[tuple[str, str]], list[str], list[list[str]]]:
    """Return the settings that all systems share, the names of those that differ, and their values by system."""
    each = [dict(_fields(system)) for system in systems]
    met = list(dict.fromkeys(name for fields in each for name in fields))
    names = sorted(
        met, key=lambda name: met.index(name.partition(".")[0])
    )  # keeps the nested settings of a component together
    same = [name for name in names if len({fields.get(name) for fields in each}) == 1]
    varied = [name for name in names if name not in same]
    return [(name, each[0][name]) for name in same], varied, [[f.get(name, "–") for name in varied] for f in each]


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield all settings by path (``retriever.depth``): visible dataclass fields and the values of ``identity()``."""
    parts: dict[str, Any] = {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = type(value).__name__
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}
    else:
        shown = value if isinstance(value, str) and value else repr(value)
        if hasattr(value, "identity") and isinstance(own := value.identity(), Mapping):
            parts = dict(own)
    if path:
        yield path, shown
    for name, part in parts.items():
        if path or name != "label":  # the label is the name of the system, which is shown anyway
            yield from _fields(part, f"{path}.{name}" if path else name)


# --------------------------------------------------------------------------------------- figures


def _figures(found: Findings, *, compared: bool) -> dict[str, list[Markup]]:
    """Return the plots of each section, with alternative texts."""
    measure, names = found.measures[0], list(found.systems["system"])
    wide = found.per_query(measure)
    queries = wide.reset_index().melt("query_id", var_name="system").assign(measure=measure)
    drawn: dict[str, list[tuple[plots.Figure, str]]] = {"leaderboard": [], "differences": [], "tradeoff": []}
    if len(queries):
        baseline = found.baseline if found.baseline in names else None
        picture = plots.leaderboard(queries, measure=measure, baseline=baseline)
        alternative = f"Mean {measure} of each system with its 95% interval; the table of systems has the numbers."
        drawn["leaderboard"].append((picture, alternative))
    for name in [name for name in names if compared and name != found.baseline][:_MAX_SYSTEMS]:
        if wide[[name, found.baseline]].notna().all(axis=1).any():
            picture = plots.differences(queries, measure=measure, system=name, baseline=found.baseline)
            alternative = f"Difference in {measure} between {name} and {found.baseline}, question by question, sorted."
            drawn["differences"].append((picture, alternative))
    for cost in _COSTS:
        if cost in found.systems and found.systems[[measure, cost]].notna().all(axis=1).any():
            picture = plots.tradeoff(found.systems, measure=measure, cost=cost)
            alternative = (
                f"{measure} of each system against its {_HEADINGS.get(cost, cost)}; the table has the numbers."
            )
            drawn["tradeoff"].append((picture, alternative))
    return {
        section: [
            _svg(figure, f"{section}-{number}-", alternative) for number, (figure, alternative) in enumerate(pictures)
        ]
        for section, pictures in drawn.items()
    }


def _svg(figure: plots.Figure, prefix: str, alternative: str) -> Markup:
    """Render a figure as an SVG element with unique ids and the colours of the page."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = etree.fromstring(drawn.getvalue())
    for dropped in svg.xpath("//svg:metadata | //svg:style | //comment()", namespaces={"svg": _SVG[1:-1]}):
        dropped.getparent().remove(dropped)
    for element in svg.iter():
        for name, value in element.attrib.items():
            if name == "id":
                value = prefix + value
            elif name == "d":
                value = _DECIMALS.sub(r"\1", value)
            else:
                value = _REFERENCE.sub(rf"\1#{prefix}", value)
            if name == "style":
                value = _COLOUR.sub(lambda match: _COLOURS[match.group()], value)
            element.set(name, value)
    for name in ("width", "height", "version"):
        del svg.attrib[name]
    svg.set("role", "img")
    svg.set("aria-label", printable(alternative))
    svg.set("style", f"width:{figure.get_size_inches()[0] * 96:.0f}px")
    return Markup(etree.tostring(svg, encoding="unicode"))
